"""Output of a notebook cell: one line of progress that is replaced, and the lines that stay.

    with CellLine() as line:
        line.show("answers: 12/300")      replaced by the next
        line.keep("the student is in ...")
    recipe.run(config, directory, watch=CellReporter(line))

Outside of a notebook nothing can be replaced: progress is then left out.
"""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import Protocol, cast

from distill_lab.activity import BY_PACE, Activity, ProgressReporter
from distill_lab.formatting import clean, duration
from distill_lab.types import JsonObject

EVERY_S = 0.5
"""Seconds between two changes of the line."""
PROGRESS = re.compile(r"  .*(?: left| so far|, for [^,]*)$")
"""Matches the progress lines of a command whose output is a pipe."""
ALL_KEPT = re.compile(r"\s*(\d+) in, \1 kept$")
"""Matches counts of a stage that dropped nothing."""


def keep_line(text: str) -> bool:
    """Whether a line of a command's output stays: neither progress, nor a stage's title, nor counts with nothing dropped."""
    return (
        bool(text.strip()) and not text.startswith(("> ", "= ")) and not (PROGRESS.match(text) or ALL_KEPT.match(text))
    )


class Handle(Protocol):
    """A place in a cell's output."""

    def update(self, data: dict[str, str], *, raw: bool) -> None: ...


class Display(Protocol):
    """IPython's `display`, as it is called here. raw: `data` is text by its MIME type."""

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Handle: ...


def notebook_display() -> Display | None:
    """IPython's `display` in a notebook's kernel, else None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return cast(Display, display)  # with a display_id it returns a handle


class CellLine:
    """One line of progress."""

    def __init__(self) -> None:
        self._display = notebook_display()
        self._handle: Handle | None = None
        self._shown_at = 0.0
        self._waiting = ""

    @property
    def in_place(self) -> bool:
        """Whether the line can be replaced here."""
        return self._display is not None

    def show(self, text: str) -> None:
        """Replace the line, at most twice a second."""
        self._waiting = text
        if self._display is None or time.monotonic() - self._shown_at < EVERY_S:
            return
        self._write(text)

    def keep(self, text: str) -> None:
        """Print a line that stays."""
        print(clean(text), flush=True)

    def _write(self, text: str) -> None:
        data = {"text/plain": clean(text)[:200]}
        if self._handle is not None:
            self._handle.update(data, raw=True)
        elif self._display is not None:
            self._handle = self._display(data, raw=True, display_id=True)
        self._shown_at = time.monotonic()

    def __enter__(self) -> CellLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._write(f"stopped: {self._waiting}" if error else "done")


class CellReporter(ProgressReporter):
    """Shows stages and progress in the line; keeps notes, but for counts of stages that dropped nothing."""

    def __init__(self, line: CellLine) -> None:
        self._line = line
        self._title = ""
        self._began = 0.0

    def stage(self, title: str) -> None:
        """A stage begins."""
        self._title, self._began = title, time.monotonic()
        self._line.show(title)

    def note(self, text: str) -> None:
        """Keep it, if it says more than that all rows were kept."""
        if keep_line(f"  {text}"):
            self._line.keep(text)

    def progress(self, done: int, total: int, *, detail: str = "", seconds_left: float | None = BY_PACE) -> None:
        """Show how far the stage is, and how long still."""
        spent = time.monotonic() - self._began
        if seconds_left == BY_PACE:
            seconds_left = spent / done * (total - done) if done and spent >= 5 else None
        parts = [f"{self._title}: {done:,}/{total:,}", detail]
        parts.append(f"about {duration(seconds_left)} left" if seconds_left else f"{duration(spent)} so far")
        self._line.show(", ".join(filter(None, parts)))

    def doing(self, activity: Activity | None) -> None:
        """Show what is being done within a stage."""
        if activity is not None:
            self._line.show(": ".join(filter(None, [self._title, str(activity)])))

    def log(self, row: JsonObject) -> None:
        """Show training metrics as progress; keep the trainer's notes."""
        step, total = row.get("step"), row.get("num_steps")
        if "note" in row:
            self.note(str(row["note"]))
        elif isinstance(step, int) and isinstance(total, int):
            self.progress(step, total, detail=f"loss {row['loss']:.3f}" if "loss" in row else "")
