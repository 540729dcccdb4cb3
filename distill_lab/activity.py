"""What this process is doing at this moment: loaders, engines, graders and the trainer report it, a face shows it.

    with activity.doing("loading Qwen2.5-1.5B"):           in the library
        ...
    activity.report("reading prompts", 12, 300)
    with activity.listening(print):                          in a face: called with an Activity, or None when it is over
        ...

Reports are for people only. Nothing depends on them, and without a listener they cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decoding:
    """How far one call of an engine's `generate` is. Counts only grow."""

    rows: int
    """Completions that were asked for so far; an engine that takes prompts as it goes does not know them all."""
    rows_read: int
    """Of these, how many have their prompt in the key-value cache."""
    tokens: int
    """Generated tokens, those of unfinished completions included."""
    seconds_reading: float
    """Spent on prompts, shared prefixes left out: they are read once, so they say nothing about the pace."""
    seconds_decoding: float
    """Spent on generated tokens."""


@dataclass(frozen=True, slots=True)
class Activity:
    """One thing that takes a while."""

    text: str
    """As a person reads it: `loading Qwen2.5-1.5B`."""
    done: int | None = None
    total: int | None = None
    decoding: Decoding | None = None

    def __str__(self) -> str:
        if self.done is None:
            return self.text
        return f"{self.text} {self.done:,} of {self.total:,}" if self.total else f"{self.text} {self.done:,}"


Listener = Callable[[Activity | None], None]

_listeners: list[Listener] = []
"""The last one hears; it may pass on what it has no use for (`pass_on`)."""


def report(text: str, done: int | None = None, total: int | None = None, *, decoding: Decoding | None = None) -> None:
    """Tell the listener what is being done and, where it is known, how far it is."""
    if _listeners:
        _listeners[-1](Activity(text, done, total, decoding))


def over() -> None:
    """What was reported last is done."""
    if _listeners:
        _listeners[-1](None)


@contextmanager
def doing(text: str) -> Iterator[None]:
    """Report `text` at the start of the block, and its end at the end."""
    report(text)
    try:
        yield
    finally:
        over()


@contextmanager
def listening(listener: Listener) -> Iterator[Listener]:
    """`listener` hears everything in the block. Yields the one that heard before it, to pass things on to."""
    before = _listeners[-1] if _listeners else _silence
    _listeners.append(listener)
    try:
        yield before
    finally:
        # Not pop: a generator that is closed late may leave its block out of order.
        place = max(index for index, each in enumerate(_listeners) if each is listener)
        del _listeners[place]


def _silence(_: Activity | None) -> None:
    pass
