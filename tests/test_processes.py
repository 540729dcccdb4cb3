"""Two processes on the CPU (gloo) train what one process trains: whole copies of the student, and a student split in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.run import write_jsonl
from distill_lab.train.launch import SETTINGS
from distill_lab.train.trainer import train_student
from tests.test_trainer import toy_rows

STUDENT = ModelConfig(model="tiny:student")
CONFIG = TrainConfig(
    learning_rate=1e-3, tokens_per_batch=512, num_epochs=2, logging_steps=1, save_steps=3, validation_fraction=0.1
)
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

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.train.loop import StudentTrainer
from distill_lab.train.trainer import train_student

made = StudentTrainer.__init__

def check(self, *arguments, **settings):
    made(self, *arguments, **settings)
    assert self.accelerator.is_fsdp2 and self.accelerator.num_processes == 2

StudentTrainer.__init__ = check
rows, out, config, log = sys.argv[1:]
logs = []
train_student(ModelConfig(model="tiny:student"), Path(rows), Path(out), TrainConfig.model_validate_json(config),
              on_log=logs.append)
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
    """One process that takes two micro-batches to a step."""
    logs: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("alone") / "student"
    train_student(STUDENT, rows, out, CONFIG.model_copy(update={"gradient_accumulation_steps": 2}), on_log=logs.append)
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
    assert result.steps == max(row["step"] for row in logs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_a_student_split_over_two_processes_is_the_same(
    rows: Path, tmp_path: Path, alone: tuple[dict[str, torch.Tensor], list[Any]]
) -> None:
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    launch += [str(SETTINGS / "fsdp2.yaml"), "--num_processes", "2", "--main_process_port", "0", str(script)]
    arguments = [str(rows), str(tmp_path / "student"), CONFIG.model_dump_json(), str(tmp_path / "log.json")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [*launch, *arguments], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "student", json.loads((tmp_path / "log.json").read_text()), alone)


def test_what_stops_one_process_is_told_by_name(rows: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"num_processes": 2, "learning_rate": 1e38, "warmup_ratio": 0.0})
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|inf).*learning rate \(now 1e\+38\)"):
        train_student(STUDENT, rows, tmp_path / "student", config)
    assert not (tmp_path / "student").exists()
