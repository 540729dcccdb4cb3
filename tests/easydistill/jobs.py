"""What tests of EasyDistill's jobs share: instructions and configs for the tiny family, and all that a run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill_lab.activity import ProgressReporter
from distill_lab.types import Fields

WORDS = ["cat", "dog", "red", "hat", "fox", "saw", "axe", "kiwi", "pear", "lion", "boot", "duck"]


def upper_case(first: list[str], second: list[str]) -> list[dict[str, str]]:
    """An instruction for each pair of words."""
    return [{"instruction": f"Make this upper case: {a}, {b}"} for a in first for b in second]


ROWS, FEW = upper_case(WORDS[:6], WORDS[6:10]), upper_case(WORDS[:4], WORDS[4:8])


class Log(ProgressReporter):
    """Everything a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, title: str) -> None:
        self.stages.append(title)

    def has(self, text: str) -> bool:
        """Whether a note has this text."""
        return any(text in note for note in self.notes)


def write_config(data: dict[str, Any], changes: Fields) -> Path:
    """Write a config; the change `training__max_steps` sets a key of a section, None removes it."""
    for place, value in changes.items():
        *sections, key = place.split("__")
        section = data
        for name in sections:
            section = section[name]
        section[key] = value
        if value is None:
            del section[key]
    path = Path("job.json")
    path.write_text(json.dumps(data))
    return path


def black_box(job_type: str = "kd_black_box_local", /, **changes: Any) -> Path:
    """A config of the 24 instructions in `in.json` for the tiny family."""
    data: dict[str, Any] = {
        "job_type": job_type,
        "dataset": {"instruction_path": "in.json", "labeled_path": "out.json", "template": "kd.jinja", "seed": 42},
        "inference": {"temperature": 0, "seed": 7, "max_new_tokens": 24, "trust_remote_code": False},
        "models": {"teacher": "tiny:teacher", "student": "tiny:student"},
        "training": {"output_dir": "student", "num_train_epochs": 1, "learning_rate": 1e-3, "fp16": True},
    }
    return write_config(data, changes)


def authors_config(shared_data: Path, name: str, **changes: Any) -> Path:
    """One of the authors' configs with other models and paths."""
    data = json.loads((shared_data / "easydistill_1.0" / name).read_text())
    for place, value in changes.items():
        section, key = place.split("__")
        assert key in data[section], place
        data[section][key] = value
    Path(name).write_text(json.dumps(data))
    return Path(name)
