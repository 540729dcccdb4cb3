"""Two processes on the CPU (gloo) train what one process trains: whole copies of the student, and a student split in two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.train.launch import SETTINGS
from distill_lab.train.lora import merge_directory
from distill_lab.train.student import train_student
from tests.helpers import ROOT, toy_rows

pytestmark = pytest.mark.slow

STUDENT = ModelConfig(model="tiny:student")
CONFIG = TrainConfig(
    dtype="fp32", learning_rate=1e-3, tokens_per_batch=512, gradient_accumulation_steps=2, num_epochs=2, logging_steps=1,
    save_steps=3, validation_fraction=0.1,
)  # fmt: skip
LIMIT_S = 240
"""Seconds after which a training in two processes, which takes some 30, has hung."""
SPLIT = """
import json, os, sys
from pathlib import Path

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

# accelerate turns FSDP on for GPUs only; torch's own, and everything above it, works on CPUs as well.
as_it_was = AcceleratorState.__init__

def with_fsdp(self, *arguments, fsdp_plugin=None, **settings):
    as_it_was(self, *arguments, fsdp_plugin=fsdp_plugin, **settings)
    plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

AcceleratorState.__init__ = with_fsdp

import torch

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.models.loading import load_model
from distill_lab.train import saving
from distill_lab.train.objectives import cross_entropy
from distill_lab.train.trainer import StudentTrainer
from distill_lab.train.student import train_student

# What the two processes count is added up.
plain = cross_entropy.chunk_loss

def chunk_loss(logits_CV, targets):
    loss = plain(logits_CV, targets)
    return loss._replace(metrics={"nats": loss.total})

cross_entropy.chunk_loss = chunk_loss
made = StudentTrainer.__init__
trainers = []

def check(self, *arguments, **settings):
    made(self, *arguments, **settings)
    trainers.append(self)
    assert self.accelerator.is_fsdp2 and self.accelerator.num_processes == 2

StudentTrainer.__init__ = check
rows, out, config, log, dtype = sys.argv[1:]
if dtype != "float32":
    saving.compute_dtype = lambda device: getattr(torch, dtype)
logs = []

def generated(model):
    ids = torch.arange(5, 12)[None]
    return model.eval().generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )

def on_log(row):
    logs.append(row)
    model = trainers[0].model_wrapped if trainers else None
    if row.get("step") != 2 or "loss" not in row or hasattr(model, "peft_config"):
        return
    # The split student generates what it would as a whole, and its training goes on as if it had not.
    state = trainers[0].accelerator.get_state_dict(model)
    found = generated(model)
    model.train()
    if os.environ["RANK"] == "0":
        whole, _ = load_model(ModelConfig(model="tiny:student"))
        whole.load_state_dict(state, strict=False)
        assert torch.equal(generated(whole), found)
        logs.append({"generated": found.tolist()})

train_student(ModelConfig(model="tiny:student"), Path(rows), Path(out), TrainConfig.model_validate_json(config),
              on_log=on_log)
if os.environ["RANK"] == "0":
    Path(log).write_text(json.dumps(logs))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows(60))
    return path


@pytest.fixture(scope="module")
def alone(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """One process, which takes two micro-batches to a step, where each of two processes takes one."""
    logs: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("alone") / "student"
    train_student(STUDENT, rows, out, CONFIG, on_log=logs.append)
    return load_file(out / "model.safetensors"), logs


def losses(logs: list[dict[str, Any]]) -> list[float]:
    return [row[name] for row in logs for name in ("loss", "grad_norm", "validation_loss") if name in row]


def assert_same(out: Path, logs: list[dict[str, Any]], alone: tuple[dict[str, torch.Tensor], list[Any]]) -> None:
    expected, expected_logs = alone
    assert losses(logs) == pytest.approx(losses(expected_logs), rel=1e-5)
    assert len(losses(logs)) > 6
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5)


def test_two_processes_give_one_processs_student(
    rows: Path, tmp_path: Path, alone: tuple[dict[str, torch.Tensor], list[Any]]
) -> None:
    logs: list[dict[str, Any]] = []
    config = CONFIG.model_copy(update={"num_processes": 2})
    result = train_student(STUDENT, rows, tmp_path / "student", config, on_log=logs.append)
    assert_same(tmp_path / "student", logs, alone)
    assert result.steps == max(row["step"] for row in logs if "step" in row)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_two_processes_share_a_step_of_one_micro_batch(rows: Path, tmp_path: Path) -> None:
    """Sums are added up in another order, so the losses are equal but for rounding."""
    found: list[list[float]] = []
    for processes in (1, 2):
        logs: list[dict[str, Any]] = []
        update = {"num_processes": processes, "gradient_accumulation_steps": 1, "num_epochs": 1}
        result = train_student(
            STUDENT, rows, tmp_path / str(processes), CONFIG.model_copy(update=update), on_log=logs.append,
            log_file=tmp_path / f"{processes}.jsonl",
        )  # fmt: skip
        assert result.steps == 6
        found.append(losses(logs))
        assert [row["step"] for row in read_jsonl(tmp_path / f"{processes}.jsonl") if "loss" in row] == [*range(1, 7)]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def train_split(rows: Path, folder: Path, config: TrainConfig, *, dtype: str = "float32") -> list[dict[str, Any]]:
    """Train `folder`/student split over two processes, ended after LIMIT_S; the logs. dtype: saved in."""
    script = folder / "split.py"
    script.write_text(SPLIT)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    launch += [str(SETTINGS / "fsdp2.yaml"), "--num_processes", "2", "--main_process_port", "0", str(script)]
    log = folder / "log.json"
    arguments = [str(rows), str(folder / "student"), config.model_dump_json(), str(log), dtype]
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        [*launch, *arguments], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        error = process.communicate(timeout=LIMIT_S)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that train, too
        pytest.fail(f"not at an end after {LIMIT_S} s: {sorted(str(path) for path in folder.rglob('*'))}")
    assert process.returncode == 0, error[-3000:]
    return json.loads(log.read_text())


def test_a_student_split_over_two_processes_is_the_same(
    rows: Path, tmp_path: Path, alone: tuple[dict[str, torch.Tensor], list[Any]]
) -> None:
    logs = train_split(rows, tmp_path, CONFIG)
    assert_same(tmp_path / "student", logs, alone)
    assert any("generated" in row for row in logs)
    for row in logs:
        assert "loss" not in row or row["metrics"]["nats"] == pytest.approx(row["loss"], rel=1e-5)


def test_a_split_student_is_saved_in_what_it_is_used_in(rows: Path, tmp_path: Path) -> None:
    train_split(rows, tmp_path, CONFIG.model_copy(update={"max_steps": 2}), dtype="bfloat16")
    weights = load_file(tmp_path / "student" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_of_a_split_student_end_merged_or_not(rows: Path, tmp_path: Path, merge: bool) -> None:
    config = CONFIG.model_copy(update={"max_steps": 3, "lora": LoraConfig(r=4, merge=merge)})
    train_split(rows, tmp_path, config)
    out = tmp_path / "student"
    adapters = out / "adapter" if merge else out
    names = {path.name for path in adapters.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.json", "split.py", "student"]
    if merge:
        assert names == {"adapter_config.json", "adapter_model.safetensors"}
        merge_directory(ModelConfig(model=str(adapters)), tmp_path / "by hand")
        by_hand = load_file(tmp_path / "by hand" / "model.safetensors")
        weights = load_file(out / "model.safetensors")
        assert weights.keys() == by_hand.keys()
        assert all(torch.equal(weight, by_hand[name]) for name, weight in weights.items())
        base, tokenizer = load_model(STUDENT)
        assert any(not torch.equal(weight, base.state_dict()[name]) for name, weight in weights.items())
        assert load_tokenizer(ModelConfig(model=str(out))).chat_template == tokenizer.chat_template


def test_what_stops_one_process_is_told_by_name(rows: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"num_processes": 2, "learning_rate": 1e38, "warmup_ratio": 0.0})
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|inf).*learning rate \(now 1e\+38\)"):
        train_student(STUDENT, rows, tmp_path / "student", config)
    assert not (tmp_path / "student").exists()
