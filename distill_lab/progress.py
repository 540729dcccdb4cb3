"""How recipes report progress: the library calls these methods; `terminal.py` overrides them to print."""

from __future__ import annotations

from typing import Any

from distill_lab.activity import Activity

BY_PACE = -1.0
"""Value of `seconds_left` that asks for an estimate from the counts so far."""


class ProgressReporter:
    """Prints nothing; `terminal.Terminal` draws progress bars."""

    def stage(self, title: str) -> None:
        """A stage starts; people read `title`, for example `teacher answers 1000 prompts`."""

    def finished(self, title: str) -> None:
        """The stage that started with `title` is done."""

    def skipped(self, title: str) -> None:
        """A stage was already finished with the same inputs and was not run again."""

    def note(self, text: str) -> None:
        """Information for the user: counts, choices made, paths written."""

    def progress(self, done: int, total: int, *, detail: str = "", seconds_left: float | None = BY_PACE) -> None:
        """How far the current stage is, in rows or steps; `detail` is its speed or loss.

        seconds_left: the caller's own estimate; None: it has no reliable one yet.
        """

    def doing(self, activity: Activity | None) -> None:
        """What is being done within or between stages (loading, reading prompts, saving); None: it has ended."""

    def log(self, row: dict[str, Any]) -> None:
        """One row of training metrics (`step`, `loss`, `learning_rate`, ...)."""
