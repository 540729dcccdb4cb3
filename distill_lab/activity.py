"""What this process is doing right now: loaders, engines, graders and the trainer report it; the terminal shows it.

    with activity.doing("loading Qwen2.5-1.5B"):           in the library
        ...
    activity.report("reading prompts", 12, 300)
    with activity.listening(print):                          in the terminal: called with an Activity, or None at its end
        ...

Reports are only for people: no code depends on them, and without a listener they cost nothing. Recipes report their stages
through a `ProgressReporter`, which `terminal.py` overrides to print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from distill_lab.types import JsonObject


@dataclass(frozen=True, slots=True)
class Decoding:
    """Progress of one call of an engine's `generate`. Counts only grow."""

    rows: int
    """Completions requested so far; an engine that takes prompts as it goes does not know the total."""
    rows_read: int
    """How many of these have their prompt in the KV cache."""
    tokens: int
    """Generated tokens, including those of unfinished completions."""
    seconds_reading: float
    """Seconds of prefill, without shared prefixes: they are read only once, so they do not predict the speed."""
    seconds_decoding: float
    """Seconds of decoding."""


@dataclass(frozen=True, slots=True)
class Activity:
    """One operation that takes a while."""

    text: str
    """Description for people: `loading Qwen2.5-1.5B`."""
    done: int | None = None
    total: int | None = None
    decoding: Decoding | None = None

    def __str__(self) -> str:
        if self.done is None:
            return self.text
        return f"{self.text} {self.done:,} of {self.total:,}" if self.total else f"{self.text} {self.done:,}"


Listener = Callable[[Activity | None], None]

_listeners: list[Listener] = []
"""Only the last one is called; it may pass reports on to the one before (`listening` yields it)."""


def report(text: str, done: int | None = None, total: int | None = None, *, decoding: Decoding | None = None) -> None:
    """Tell the listener what is being done and, if known, how far it is."""
    if _listeners:
        _listeners[-1](Activity(text, done, total, decoding))


def over() -> None:
    """Tell the listener that the last reported activity has ended."""
    if _listeners:
        _listeners[-1](None)


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Report `text` when the block starts, and its end when the block ends."""
    report(text)
    try:
        yield
    finally:
        over()


@contextmanager
def listening(listener: Listener) -> Iterator[Listener]:
    """Send all reports in the block to `listener`. Yields the previous listener, for reports to pass on."""
    before = _listeners[-1] if _listeners else _silence
    _listeners.append(listener)
    try:
        yield before
    finally:
        # Not pop: a generator that is closed late may leave its block out of order.
        last = max(index for index, each in enumerate(_listeners) if each is listener)
        del _listeners[last]


def _silence(_: Activity | None) -> None:
    pass


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

    def log(self, row: JsonObject) -> None:
        """One row of training metrics (`step`, `loss`, `learning_rate`, ...)."""
