"""What a notebook's process holds while a training runs beside it: nothing of models that are done, and few lines of it."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest
import torch

import distill_app
from distill_lab import memory
from distill_lab.config import ModelConfig
from distill_lab.easydistill.process import run_process
from distill_lab.models import load_model

BAR = """
import time
from distill_lab.terminal import Terminal

terminal = Terminal()
terminal.stage("answers")
for done in range(400):
    terminal.progress(done, 400)
    time.sleep(0.01)
terminal.note("done")
"""


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were alive each time memory was given back to the driver."""
    found: list[int] = []

    def alive() -> None:
        gc.collect()
        found.append(sum(ref() is not None for ref in loaded))

    loaded: list[weakref.ref[Any]] = []
    kept = load_model

    def load(config: ModelConfig, **settings: Any) -> Any:
        model, tokenizer = kept(config, **settings)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr("distill_lab.models.load_model", load)
    monkeypatch.setattr(memory, "free_memory", alive)
    return found


def test_comparing_gives_each_models_memory_back_before_the_next_one_loads(freed: list[int]) -> None:
    distill_app.compare_models(
        ["Make this upper case: pear"],
        teacher_path="tiny:teacher",
        system1_path="tiny:student",
        system2_path="tiny:student",
        max_new_tokens=2,
    )
    assert freed == [0, 0, 0]


def test_a_process_starts_when_the_memory_is_given_back(freed: list[int]) -> None:
    model, tokenizer = distill_app.load_teacher("tiny:teacher")
    distill_app.label_with_teacher(model, tokenizer, [{"instruction": "Say yes."}], max_new_tokens=2)
    assert freed == [1]  # the teacher is the caller's; what its answers took is given back
    del model, tokenizer
    assert run_process([sys.executable, "-c", ""], on_line=print) == 0
    assert freed == [1, 0]
    assert isinstance(torch.__version__, str)


@pytest.mark.parametrize("color", ["1", ""])
def test_progress_is_no_line_for_every_refresh(color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", color)  # as ipykernel does
    monkeypatch.setenv("TERM", "xterm-color")
    lines: list[str] = []
    assert run_process([sys.executable, "-c", BAR], on_line=lines.append) == 0
    assert len(lines) < 10
    assert lines[-1].strip() == "done"
    assert not any("\x1b" in line for line in lines)
