"""How a recipe tells what it is doing. The library calls these; the faces override them to print, the base is silent."""

from __future__ import annotations

from typing import Any

from distill_lab.activity import Activity

BY_PACE = -1.0
"""Instead of the seconds left: a face takes them from the pace of the counts."""


class ProgressReporter:
    """Silent. `terminal.py` has the one that draws progress bars."""

    def stage(self, title: str) -> None:
        """A stage begins; `title` is what a person reads, for example `teacher answers 1000 prompts`."""

    def finished(self, title: str) -> None:
        """The stage that began with `title` is done."""

    def skipped(self, title: str) -> None:
        """A stage was found finished with the same inputs, and left alone."""

    def note(self, text: str) -> None:
        """Something worth knowing: counts, choices made, paths written."""

    def progress(self, done: int, total: int, *, detail: str = "", seconds_left: float | None = BY_PACE) -> None:
        """How far the current stage is, in rows or steps; `detail` holds speed or loss.

        seconds_left: as the caller measured it; None: it has no sound figure yet.
        """

    def doing(self, activity: Activity | None) -> None:
        """What is being done within the stage, or between stages (loading, reading prompts, saving); None: it is over."""

    def log(self, row: dict[str, Any]) -> None:
        """One line of training figures (`step`, `loss`, `learning_rate`, ...)."""
