"""An item of the tiny family's tasks."""

from __future__ import annotations

from typing import TypedDict


class Item(TypedDict):
    """What a task's `item(rng)` generates."""

    question: str
    output: str
    """The worked answer."""
    thinking: str
    answer: str
    """The gold answer."""
    meta: dict[str, str | int]
    """Type, and for problems level and style."""
