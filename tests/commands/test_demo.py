"""`distill demo`: both recipes and the comparison, here on slices of the tiny presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from distill_lab.commands import demo
from distill_lab.config import DataConfig, TrainConfig
from distill_lab.recipes import system1, system2
from distill_lab.train.student import train_student

pytestmark = pytest.mark.slow


def test_both_systems_are_shown_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe, task in ((system1, "instructions"), (system2, "problems")):
        small = {
            "data": DataConfig(path=f"tiny:{task}", split="distill[:40]"),
            "test": DataConfig(path=f"tiny:{task}", split="test[:10]"),
            "train": TrainConfig(learning_rate=1e-3, tokens_per_batch=1024),
        }
        monkeypatch.setitem(recipe.PRESETS, "tiny", recipe.PRESETS["tiny"].model_copy(update=small))
    monkeypatch.setattr(demo, "SYSTEM2_SPLIT", "distill[:40]")
    trained: list[Path] = []

    def train_here(*arguments: Any, **settings: Any) -> Any:
        trained.append(arguments[2])
        return train_student(*arguments, **settings)

    monkeypatch.setattr("distill_lab.train.student.train_student", train_here)
    assert demo.main(demo.Config(run=tmp_path)) == 0
    # System 2's was trained by the process beside this one, and only there.
    assert trained == [tmp_path / "system1" / "student"]
    printed = capsys.readouterr().out
    assert printed.index("System 1: instruction following") < printed.index("System 2: reasoning in steps")
    table = printed[printed.index("Both, side by side") :]
    assert re.search(r"System 1 +System 2", table)
    assert "speedup one at a time" in table
    for label in ("Teacher", "System 1", "System 2"):
        assert table.count(f"\n{label}:\n") == len(demo.PROMPTS), label
    for name in ("system1", "system2"):
        assert (tmp_path / name / "student" / "config.json").is_file()
        assert (tmp_path / name / "report.html").is_file()
