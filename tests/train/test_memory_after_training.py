"""After a training nothing of it is left in memory: no weights, no gradients, no state of the optimizer."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.train.student import train_student
from distill_lab.train.trainer import StudentTrainer
from tests.helpers import toy_rows

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(tokens_per_batch=512, max_steps=2, logging_steps=1, validation_fraction=0.1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": LoraConfig(r=4)}, {"lora": LoraConfig(r=4, merge=True)}, {"gradient_checkpointing": True}],
    ids=["full", "lora", "merged", "checkpointing"],
)
def test_weights_gradients_and_optimizer_are_gone_when_training_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    held: list[weakref.ref[Any]] = []
    saved = StudentTrainer.save

    def save(self: StudentTrainer, *arguments: Any) -> bool:
        optimizer: Any = self.optimizer
        states = [each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
        model: Any = self.model
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert len(states) > 4
        held.extend(weakref.ref(each) for each in (self, model, optimizer, *model.parameters(), *states, *gradients))
        return saved(self, *arguments)

    monkeypatch.setattr(StudentTrainer, "save", save)
    write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    gc.collect()
    gc.disable()  # what Python would come to collect at some time does not count
    try:
        train_student(
            ModelConfig(model="tiny:student"), tmp_path / "rows.jsonl", tmp_path / "student",
            CONFIG.model_copy(update=changes),
        )  # fmt: skip
        alive = [each for each in (reference() for reference in held) if each is not None]
    finally:
        gc.enable()
    assert len(held) > 50
    assert not alive, [type(each).__name__ for each in alive][:5]


def test_memory_is_given_back_before_processes_are_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that this process held would otherwise be taken from the GPUs that the processes share with it."""
    order: list[str] = []

    class Stopped(Exception):
        pass

    def popen(*arguments: Any, **settings: Any) -> Any:
        order.append("start")
        raise Stopped

    monkeypatch.setattr("distill_lab.device.free_memory", lambda: order.append("free"))
    monkeypatch.setattr("subprocess.Popen", popen)
    write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    config = CONFIG.model_copy(update={"num_processes": 2})
    with pytest.raises(Stopped):
        train_student(ModelConfig(model="tiny:student"), tmp_path / "rows.jsonl", tmp_path / "student", config)
    assert order == ["free", "start"]
