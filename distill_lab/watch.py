"""How a recipe tells what it is doing. The library calls these; the faces override them to print, the base is silent."""

from __future__ import annotations

from typing import Any


class Watch:
    """Silent. `cli.py` has the one that draws progress bars."""

    def stage(self, title: str) -> None:
        """A stage begins; `title` is what a person reads, for example `teacher answers 1000 prompts`."""

    def skipped(self, title: str) -> None:
        """A stage was found finished with the same inputs, and left alone."""

    def note(self, text: str) -> None:
        """Something worth knowing: counts, choices made, paths written."""

    def progress(self, done: int, total: int, *, detail: str = "") -> None:
        """How far the current stage is, in rows or steps; `detail` holds speed and time left."""

    def log(self, row: dict[str, Any]) -> None:
        """One line of training figures (`step`, `loss`, `learning_rate`, ...)."""
