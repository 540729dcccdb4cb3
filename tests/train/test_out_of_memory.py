"""Training where the memory runs out: micro-batches are halved, and the result is that of enough memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.train.checkpoints import damage
from distill_lab.train.objectives import LossBatch, LossOutput
from distill_lab.train.packing import split_batch
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_model
from tests.helpers import CROSS_ENTROPY, IN_THREE_PARTS, limited, toy_rows, train_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> Path:
    return random_model(hidden=32, layers=1)


@pytest.mark.parametrize("backward", [False, True])
def test_halved_micro_batches_give_the_same_student(student: Path, tmp_path: Path, backward: bool) -> None:
    whole: list[int] = []
    expected, before = train_with(limited(10_000, calls=whole), student, tmp_path / "whole", IN_THREE_PARTS)
    calls: list[int] = []
    found, after = train_with(
        limited(max(whole) // 3, calls=calls, backward=backward), student, tmp_path / "halved", IN_THREE_PARTS
    )
    notes = [row["note"] for row in after if "out of memory" in row.get("note", "")]
    assert len(notes) >= 2
    assert notes[0] == "out of memory: micro-batches of 128 tokens, 2 times as many to a step"
    assert notes[1] == "out of memory: micro-batches of 64 tokens, 4 times as many to a step"
    assert len(calls) > 3 * len(whole)
    losses = [[row["loss"] for row in logs if "loss" in row] for logs in (before, after)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-5)


def test_one_row_that_does_not_fit_stops_with_remedies(student: Path, tmp_path: Path) -> None:
    def objective(hidden_NH: torch.Tensor, head: Any, batch: LossBatch) -> LossOutput:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match=r"step 1: out of memory even with one row at a time; lower --train\.tokens"):
        train_with(objective, student, tmp_path / "student", IN_THREE_PARTS)
    assert not (tmp_path / "student").exists()


def test_an_optimizer_without_room_for_its_state_says_what_needs_less(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW makes its state, 8 bytes a weight, in its first step; this one runs out in its second."""
    steps: list[int] = []
    real = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **settings: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 520.00 MiB")
        return real(self, *arguments, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = IN_THREE_PARTS.model_copy(update={"save_steps": 1.0})
    with pytest.raises(
        UserError, match=r"step 2: out of memory in the optimizer's step; AdamW .*adamw_8bit.*lora\.r 16"
    ):
        train_with(CROSS_ENTROPY, student, tmp_path / "student", config)
    assert not (tmp_path / "student").exists()
    assert damage(tmp_path / "student.work" / "checkpoint-1") is None


def test_a_validation_without_memory_is_cut_into_parts(student: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    config = IN_THREE_PARTS.model_copy(update={"validation_fraction": 0.3, "max_steps": 1})
    losses = []
    for most in (10_000, 30):
        calls: list[int] = []

        def objective(
            hidden_NH: torch.Tensor, head: Any, batch: LossBatch, most: int = most, calls: list[int] = calls
        ) -> LossOutput:
            if not torch.is_grad_enabled():
                calls.append(len(hidden_NH))
                if len(hidden_NH) > most:
                    raise torch.OutOfMemoryError("out of memory")
            return CROSS_ENTROPY(hidden_NH, head, batch)

        model, tokenizer = load_model(ModelConfig(model=str(student)), training=True)
        data = read_rows(tmp_path / "rows.jsonl", tokenizer, max_length=512, validation_fraction=0.3, seed=0)
        result = train_model(model, tokenizer, data, tmp_path / str(most), config, key="k", objective=objective)
        losses.append((result.validation_loss_before, result.validation_loss_after))
        assert max(calls) > 30
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_validation_row_that_does_not_fit_stops_with_remedies(student: Path, tmp_path: Path) -> None:
    def objective(hidden_NH: torch.Tensor, head: Any, batch: LossBatch) -> LossOutput:
        raise torch.OutOfMemoryError("out of memory")

    write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    model, tokenizer = load_model(ModelConfig(model=str(student)), training=True)
    data = read_rows(tmp_path / "rows.jsonl", tokenizer, max_length=512, validation_fraction=0.3, seed=0)
    with pytest.raises(UserError, match=r"out of memory in the validation even with one row at a time; lower --train"):
        train_model(model, tokenizer, data, tmp_path / "student", IN_THREE_PARTS, key="k", objective=objective)


def test_other_errors_are_raised_as_they_are(student: Path, tmp_path: Path) -> None:
    def objective(hidden_NH: torch.Tensor, head: Any, batch: LossBatch) -> LossOutput:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_with(objective, student, tmp_path / "student", IN_THREE_PARTS)


def test_a_batch_is_split_into_bins_and_then_into_rows() -> None:
    batch = [[0, 1], [2], [3, 4, 5]]
    assert split_batch(batch, 1) == [batch]
    assert split_batch(batch, 2) == [[[0, 1]], [[2], [3, 4, 5]]]
    for parts in (4, 8):
        assert sorted(row for part in split_batch(batch, parts) for bin_ in part for row in bin_) == [0, 1, 2, 3, 4, 5]
    assert len(split_batch(batch, 4)) == 4
    assert split_batch(batch, 8) == [[[row]] for row in range(6)]
