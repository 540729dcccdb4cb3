"""training_log.jsonl: one line per logged step of a training, complete however often the training was interrupted.

The trainer's history -> JSONL, in the order of the steps: `{"step", "epoch", "loss", "learning_rate", "grad_norm",
"tokens_per_s", "metrics", "seconds"}` and `{"step", "epoch", "validation_loss", "seconds"}`. The loss and the metrics of the
objective, `{name: number}` if it has some, are per loss position, means over the steps since the line before. `seconds` is
the time spent training so far, interrupted calls included.

    tail -f runs/first/training_log.jsonl
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.files.jsonl import JsonlAppender, write_jsonl
from distill_lab.types import Fields, JsonObject

NAME = "training_log.jsonl"
FIELDS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_s",
    "validation_loss",
    "metrics",
    "seconds",
)


OnLog = Callable[[JsonObject], None]
"""Called with `{"step", "num_steps", "epoch", ...}` and `loss`, `grad_norm`, `learning_rate`, `tokens_per_s` and, if the
objective has some, `metrics`, or with `validation_loss`, or with `note`: a sentence for the user."""


def log_beside(out: Path) -> Path:
    """Where the log of a training goes whose student goes to `out`, outside of a run."""
    return out.with_name(f"{out.name}.{NAME}")


def check_is_log(path: Path) -> None:
    """Raise UserError if there is a file at `path` that no training wrote: it would be overwritten."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline() or '{"step": 0, "seconds": 0}')
        ours = {"step", "seconds"} <= first.keys() <= set(FIELDS)
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"{path} exists and is not a training log; move it, or choose another place for the student")


class TrainingLog:
    """Writes the file; the first line comes with `begin`."""

    def __init__(self, path: Path | None) -> None:
        """path: of the file; None: nothing is written."""
        self.path = path

    def begin(self, history: Sequence[Fields]) -> None:
        """Start the file with the lines of the steps before the checkpoint that training resumes from.

        They come from the checkpoint's own history: lines of later steps, which are about to be repeated, are replaced.
        """
        if self.path:
            check_is_log(self.path)
            write_jsonl(self.path, filter(None, map(_line, history)))

    def add(self, entry: Fields) -> None:
        """Append the line of one entry of the trainer's history, on disk when this returns."""
        line = _line(entry)
        if self.path and line:
            with JsonlAppender(self.path) as file:
                file.append([line])


def _line(entry: Fields) -> JsonObject | None:
    """None for entries that are no step's: the trainer ends with one that sums up."""
    if "loss" not in entry and "validation_loss" not in entry:
        return None
    return {name: _finite(entry[name]) for name in FIELDS if name in entry}


def _finite(value: object) -> object:
    """fp16 skips steps whose gradients overflow; infinity has no form in JSON."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def mean_loss(history: Sequence[Mapping[str, float]]) -> float:
    """Mean over the steps of the loss in a trainer's history, those before an interruption included."""
    total, last = 0.0, 0
    for row in history:
        if "loss" in row:
            total += row["loss"] * (row["step"] - last)
            last = row["step"]
    return total / last
