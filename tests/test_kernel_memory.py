"""What a notebook's process holds while a training runs beside it: nothing of models that are done, and few lines of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest

import distill_app
from distill_lab import device
from distill_lab.config import ModelConfig
from distill_lab.easydistill.process import run_process
from distill_lab.models.loading import load_model

pytestmark = pytest.mark.slow

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
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happened: "load", and each time memory was given back to the driver how many models were alive."""
    found: list[Any] = []
    loaded: list[weakref.ref[Any]] = []
    kept = load_model

    def alive() -> None:
        gc.collect()
        found.append(sum(ref() is not None for ref in loaded))

    def load(config: ModelConfig, **settings: Any) -> Any:
        found.append("load")
        model, tokenizer = kept(config, **settings)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr("distill_lab.models.loading.load_model", load)
    monkeypatch.setattr(device, "free_memory", alive)
    return found


def test_comparing_gives_each_models_memory_back_before_the_next_one_loads(events: list[Any]) -> None:
    distill_app.compare_models(
        ["Make this upper case: pear"],
        teacher_path="tiny:teacher",
        system1_path="tiny:student",
        system2_path="tiny:student",
        max_new_tokens=2,
    )
    loads = [place for place, event in enumerate(events) if event == "load"]
    assert len(loads) == 3
    for start, end in zip(loads, [*loads[1:], len(events)], strict=True):
        assert events[start + 1 : end][-1] == 0  # the last thing before the next model, or at the end


def test_a_process_starts_when_the_memory_is_given_back(events: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = distill_app.load_teacher("tiny:teacher")
    distill_app.label_with_teacher(model, tokenizer, [{"instruction": "Say yes."}], max_new_tokens=2)
    assert events[0] == "load"
    assert events[-1] == 1  # the teacher is the caller's; what its answers took is given back
    del model, tokenizer
    start = subprocess.Popen

    def popen(*args: Any, **settings: Any) -> Any:
        events.append("process")
        return start(*args, **settings)

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert run_process([sys.executable, "-c", ""], on_line=print) == 0
    assert events[-2:] == [0, "process"]


@pytest.mark.parametrize("color", ["1", ""])
def test_progress_is_no_line_for_every_refresh(color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", color)  # as ipykernel does
    monkeypatch.setenv("TERM", "xterm-color")
    lines: list[str] = []
    assert run_process([sys.executable, "-c", BAR], on_line=lines.append) == 0
    assert len(lines) < 10
    assert lines[-1].strip() == "done"
    assert not any("\x1b" in line for line in lines)
