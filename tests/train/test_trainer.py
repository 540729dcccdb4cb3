"""The trainer on a real small model: the loss it minimises, interruption and damage, divergence, and what it leaves."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lab.chat import encode
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.files.outputs import work_folder
from distill_lab.models.loading import load_model
from distill_lab.train import checkpoints
from distill_lab.train.objectives import LossOutput
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_student
from distill_lab.train.trainer import StudentTrainer
from tests.helpers import FAST, step_gradients, toy_rows, train_and_kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(model=str(random_model(hidden=32, layers=1)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows())
    return path


def test_accumulated_uneven_batches_equal_one_big_batch_and_plain_transformers(
    any_head: ModelConfig, tmp_path: Path
) -> None:
    student = any_head
    path = tmp_path / "rows.jsonl"
    uneven = toy_rows(11)
    uneven[0]["completion"][0]["content"] = "red " * 100
    write_jsonl(path, uneven)
    big = TrainConfig(tokens_per_batch=100_000, num_epochs=1, max_grad_norm=1.0)
    parts = big.model_copy(update={"tokens_per_batch": 130, "gradient_accumulation_steps": 64})
    one = step_gradients(student, path, tmp_path / "one", big)
    many = step_gradients(student, path, tmp_path / "many", parts)

    model: Any = AutoModelForCausalLM.from_pretrained(student.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(student.model)
    total, count = torch.zeros(()), 0
    for row in uneven:
        encoded = encode(tokenizer, row["prompt"], row["completion"])
        labels = [token if flag else -100 for token, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True)]
        trained = sum(encoded.loss_mask)
        total = total + trained * model(input_ids=torch.tensor([encoded.input_ids]), labels=torch.tensor([labels])).loss
        count += trained
    (total / count).backward()
    for name, weight in model.named_parameters():
        scale = weight.grad.abs().max().item()
        torch.testing.assert_close(one[name], weight.grad, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(many[name], weight.grad, rtol=1e-5, atol=1e-5 * scale)


def test_training_lowers_the_validation_loss_and_leaves_a_student(
    student: ModelConfig, rows: Path, tmp_path: Path
) -> None:
    logs: list[dict[str, Any]] = []
    config = FAST.model_copy(update={"eval_steps": 0.5})
    result = train_student(student, rows, tmp_path / "student", config, on_log=logs.append)
    assert result.num_rows == 40
    assert result.validation_loss_before is not None
    assert result.validation_loss_after is not None
    assert result.validation_loss_after < 0.6 * result.validation_loss_before
    assert not (tmp_path / "student.work").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "training_args.bin" not in names
    losses = [row for row in logs if "loss" in row]
    assert [row["step"] for row in losses] == list(range(1, result.steps + 1))
    assert "seconds" not in losses[-1]
    assert losses[-1]["num_steps"] == result.steps
    assert losses[-1]["epoch"] == pytest.approx(3)
    assert result.train_loss == pytest.approx(sum(row["loss"] for row in losses) / result.steps)
    validated = [row for row in logs if "validation_loss" in row]
    assert [row["step"] for row in validated] == [0, round(result.steps / 2), result.steps]
    assert validated[-1]["validation_loss"] == result.validation_loss_after

    # The validation loss is what plain transformers computes on the same held-out rows with the saved student.
    model, tokenizer = load_model(ModelConfig(model=str(tmp_path / "student")))
    held_out = read_rows(rows, tokenizer, max_length=1024, validation_fraction=0.1, seed=config.seed).validation
    assert len(held_out) == 4
    nats, tokens = 0.0, 0
    for row in held_out:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row.input_ids[None]).long(), use_cache=False).logits[0]
        chosen = logits.log_softmax(-1).gather(1, torch.from_numpy(row.target[:, None]).long())[:, 0]
        nats -= chosen[torch.from_numpy(row.loss_mask)].sum().item()
        tokens += int(row.loss_mask.sum())
    assert result.validation_loss_after == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_run(
    random_model: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    # Dropout draws random numbers, so their state must be restored too; accumulation ends in a short step.
    student = ModelConfig(model=str(random_model(hidden=32, layers=1, attention_dropout=0.1)))
    config = FAST.model_copy(update={"save_steps": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5})
    whole = train_student(student, rows, tmp_path / "whole", config, log_file=tmp_path / "whole.jsonl")
    curve = list(read_jsonl(tmp_path / "whole.jsonl"))
    assert [row["step"] for row in curve if "loss" in row] == list(range(1, whole.steps + 1))
    assert [row["step"] for row in curve if "validation_loss" in row] == [0, whole.steps]
    assert whole.steps > 11
    train_and_kill(student, rows, tmp_path / "killed", config, step=10)
    work = tmp_path / "killed.work"
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]

    # As if the kill had come while checkpoint-8 was being written: its seal is not there yet, nor all of its files.
    shutil.copytree(work, tmp_path / "torn.work")
    (tmp_path / "torn.work" / "checkpoint-8" / checkpoints.SEAL).unlink()
    (tmp_path / "torn.work" / "checkpoint-8" / "optimizer.pt").unlink()

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for name, step in (("killed", 8), ("torn", 4)):
        logs: list[dict[str, Any]] = []
        log = tmp_path / f"{name}.jsonl"
        if name == "killed":
            assert [row["step"] for row in read_jsonl(log) if "loss" in row][-1] == 10
        result = train_student(student, rows, tmp_path / name, config, on_log=logs.append, log_file=log)
        assert result.resumed_from == step
        # Neither gaps nor the same step twice, and the time goes on from where it was.
        lines = list(read_jsonl(log))
        timed = ("tokens_per_s", "seconds")
        assert [{k: v for k, v in row.items() if k not in timed} for row in lines] == [
            {k: v for k, v in row.items() if k not in timed} for row in curve
        ]
        seconds = [row["seconds"] for row in lines]
        assert seconds == sorted(seconds)
        assert [row["step"] for row in logs if "loss" in row] == list(range(step + 1, whole.steps + 1))
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
        assert result.train_loss == pytest.approx(whole.train_loss, rel=1e-6)
        assert result.validation_loss_before == whole.validation_loss_before
        assert result.validation_loss_after == whole.validation_loss_after
        if name == "torn":
            assert result.skipped_checkpoints == {"checkpoint-8": "the process ended while it was written"}
            notes = [row["note"] for row in logs if "passed over" in row.get("note", "")]
            assert len(notes) == 1
            assert "torn.work/checkpoint-8 was passed over" in notes[0]
            assert "checkpoint-4" in notes[0]


def test_recomputed_activations_give_the_same_student(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("recomputed", True)):
        train_student(student, rows, tmp_path / name, FAST.model_copy(update={"gradient_checkpointing": recompute}))
    kept, recomputed = (load_file(tmp_path / name / "model.safetensors") for name in ("kept", "recomputed"))
    assert all(torch.equal(kept[key], recomputed[key]) for key in kept)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_train_the_same(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    def losses(name: str, config: TrainConfig) -> list[float]:
        logs: list[dict[str, Any]] = []
        train_student(student, rows, tmp_path / name, config, on_log=logs.append)
        return [row["loss"] for row in logs if "loss" in row]

    plain = losses("plain", FAST.model_copy(update={"max_steps": 5}))
    assert losses("compiled", FAST.model_copy(update={"max_steps": 5, "compile": True})) == pytest.approx(
        plain, rel=1e-4
    )


def test_bf16_passes_train_fp32_weights(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    config = FAST.model_copy(update={"dtype": "bf16"})
    result = train_student(student, rows, tmp_path / "student", config)
    assert result.validation_loss_before is not None
    assert result.validation_loss_after is not None
    assert result.validation_loss_after < 0.6 * result.validation_loss_before
    assert all(
        weight.dtype == torch.float32 for weight in load_file(tmp_path / "student" / "model.safetensors").values()
    )


def test_short_trainings_log_often_enough_and_the_first_step(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    for steps, logged in ((4, [1, 2, 3, 4]), (25, [1, *range(2, 26, 2), 25])):
        config = FAST.model_copy(update={"max_steps": steps, "logging_steps": 10, "tokens_per_batch": 64})
        log = tmp_path / f"{steps}.jsonl"
        result = train_student(student, rows, tmp_path / str(steps), config, log_file=log)
        lines = [row for row in read_jsonl(log) if "loss" in row]
        assert [row["step"] for row in lines] == logged
        weights = [step - before for step, before in zip(logged, [0, *logged], strict=False)]
        mean = sum(row["loss"] * weight for row, weight in zip(lines, weights, strict=True)) / steps
        assert result.train_loss == pytest.approx(mean)
        assert lines[0].keys() == {
            "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_s", "seconds"
        }  # fmt: skip


def test_no_file_but_a_training_log_is_overwritten(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("my notes\n")
    with pytest.raises(UserError, match=r"log\.jsonl exists and is not a training log"):
        train_student(student, rows, tmp_path / "student", FAST, log_file=log)
    assert log.read_text() == "my notes\n"
    assert not (tmp_path / "student.work").exists()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_bad_loss_is_never_saved_though_it_is_read_at_log_time(
    student: ModelConfig, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """On a GPU the loss is read with the log, so that no pass waits for it: told here by a mode that sees every read."""
    reads: list[str] = []
    passed: list[str] = []
    calls: list[int] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default and passed:
                reads.append("read")
            return func(*args, **(kwargs or {}))

    made, computed = StudentTrainer.__init__, StudentTrainer.compute_loss

    def init(self: StudentTrainer, *arguments: Any, **settings: Any) -> None:
        made(self, *arguments, **settings)
        self._checks_at_once = at_once

    def compute_loss(self: StudentTrainer, model: Any, inputs: Any, **settings: Any) -> Any:
        def spoiled(*batch: Any, **settings: Any) -> LossOutput:
            calls.append(1)
            output = model(*batch, **settings)
            output = output._replace(total=output.total * (float("nan") if len(calls) == 3 else 1.0))
            passed.append("forward")  # transformers itself reads, to find out where packed rows begin
            return output

        spoiled.training = True  # pyright: ignore[reportFunctionMemberAccess]
        passed.clear()
        with Reads():
            return computed(self, spoiled, inputs, **settings)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(StudentTrainer, "__init__", init)
    monkeypatch.setattr(StudentTrainer, "compute_loss", compute_loss)
    config = FAST.model_copy(update={"max_steps": 60, "logging_steps": 5, "save_steps": 4})
    with pytest.raises(UserError, match=r"step 3: the loss is nan"):
        train_student(student, rows, tmp_path / "student", config)
    assert len(calls) == (3 if at_once else 4)
    assert bool(reads) == at_once
    assert not (tmp_path / "student").exists()
    assert not list((tmp_path / "student.work").glob("checkpoint-*"))


def test_no_checkpoint_is_written_only_to_be_deleted(
    student: ModelConfig, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed: list[str] = []
    monkeypatch.setattr(
        "distill_lab.train.hooks.seal", lambda folder: (sealed.append(folder.name), checkpoints.seal(folder))
    )
    train_student(student, rows, tmp_path / "student", FAST.model_copy(update={"max_steps": 6, "save_steps": 3}))
    assert sealed == ["checkpoint-3"]


def test_damage_is_found(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(1000))
        (folder / "optimizer.pt").write_bytes(b"state")
        checkpoints.seal(folder)
    assert checkpoints.newest_whole(tmp_path) == checkpoints.ResumePoint(tmp_path / "checkpoint-100", {})
    weights = tmp_path / "checkpoint-100" / "model.safetensors"
    weights.write_bytes(bytes(999) + b"\x01")
    assert checkpoints.damage(tmp_path / "checkpoint-100") == "model.safetensors is not what was written"
    weights.write_bytes(bytes(999))
    assert checkpoints.damage(tmp_path / "checkpoint-100") == "model.safetensors has 999 bytes, 1000 were written"
    (tmp_path / "checkpoint-20" / "optimizer.pt").unlink()
    found = checkpoints.newest_whole(tmp_path)
    assert found.checkpoint == tmp_path / "checkpoint-3"
    assert list(found.skipped) == ["checkpoint-100", "checkpoint-20"]
    assert found.skipped["checkpoint-20"] == "optimizer.pt is missing"
    assert not (tmp_path / "checkpoint-100").exists()


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    # 1e38 moves every weight beyond what fp32 can square: the first step still has a loss, the second has none.
    config = FAST.model_copy(update={"learning_rate": 1e38, "warmup_ratio": 0.0, "save_steps": 1.0})
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|inf).*learning rate \(now 1e\+38\)"):
        train_student(student, rows, tmp_path / "student", config)
    assert not (tmp_path / "student").exists()
    assert checkpoints.damage(tmp_path / "student.work" / "checkpoint-1") is None


def test_other_settings_or_rows_start_anew(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    work = work_folder(tmp_path / "student")
    (work / "checkpoint-1").mkdir()
    (work / "key.json").write_text('"of another training"\n')
    result = train_student(student, rows, tmp_path / "student", FAST.model_copy(update={"max_steps": 2}))
    assert (result.steps, result.resumed_from, result.skipped_checkpoints) == (2, 0, {})


def test_rows_are_counted_split_by_prompt_and_never_cut(student: ModelConfig, tmp_path: Path) -> None:
    _, tokenizer = load_model(student)
    path = tmp_path / "rows.jsonl"
    # Three samples of each prompt, and one row that is too long.
    long = {
        "prompt": [{"role": "user", "content": "Go."}],
        "completion": [{"role": "assistant", "content": "on " * 200}],
    }
    written = [row for row in toy_rows(12) for _ in range(3)]
    write_jsonl(path, [*written, long])
    data = read_rows(path, tokenizer, max_length=100, validation_fraction=0.2, seed=1)
    assert data.dropped == {"longer than max_length": 1}
    assert data.num_rows == 36 == len(data.training) + len(data.validation)
    assert data.num_validation_rows == 9
    texts = [{tuple(row.input_ids.tolist()) for row in side} for side in (data.training, data.validation)]
    assert not texts[0] & texts[1]
    again = read_rows(path, tokenizer, max_length=100, validation_fraction=0.2, seed=1)
    assert [row.input_ids.tolist() for row in again.validation] == [row.input_ids.tolist() for row in data.validation]

    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([*written, long])
    parquet.write_table(table, tmp_path / "rows.parquet")
    other = read_rows(tmp_path / "rows.parquet", tokenizer, max_length=100, validation_fraction=0.2, seed=1)
    assert [row.input_ids.tolist() for row in other.training] == [row.input_ids.tolist() for row in data.training]


def test_unusable_rows_are_named(student: ModelConfig, tmp_path: Path) -> None:
    def train(*lines: Any, **settings: Any) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        train_student(student, path, tmp_path / "student", TrainConfig(**settings))

    good = toy_rows(1)[0]
    with pytest.raises(NoData, match="nothing to train on"):
        train()
    with pytest.raises(NoData, match="raise max_length"):
        train(good, max_length=8)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not a JSON object"):
        train(good, '{"prompt": [')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: `completion` must be a list of messages"):
        train({"prompt": good["prompt"], "text": "x"})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .* no message of the assistant"):
        train(good, {"prompt": good["prompt"], "completion": good["prompt"]})
    with pytest.raises(UserError, match="no such file"):
        train_student(student, tmp_path / "absent.jsonl", tmp_path / "student", TrainConfig())
    with pytest.raises(UserError, match="4bit weights cannot be trained"):
        train_student(student.model_copy(update={"quantization": "4bit"}), tmp_path, tmp_path, TrainConfig())
    assert not (tmp_path / "student").exists()
