"""The tiny family's tasks: infinitely many rows from a seed, with no item in two splits.

    rows("instructions", "distill") -> {"messages": [...], "answer": "...", "meta": {...}}, ...

Tasks: `instructions` (nine kinds of short instructions), `problems` (word problems with 1-4 steps), `labels` (13 language
labels); `traces` are the problems again, as reasoning traces with levels (`traces.py`). Splits: `train` (for training the
family itself), `distill` (for recipes), `test` (for scores). An item's split depends only on its text (`split_of`), so that
no item is in two splits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from distill_lab.errors import UserError
from distill_lab.tiny import instructions, labels, problems, traces
from distill_lab.tiny.item import Item
from distill_lab.types import Message

TASKS: dict[str, Callable[[random.Random], Item]] = {
    "instructions": instructions.item,
    "problems": problems.item,
    "labels": labels.item,
}
SPLITS = ("train", "distill", "test")
TRACES = "traces"
"""Not a task of the family: its rows are those of `problems` in another form."""


def split_of(question: str) -> str:
    """The split of an item, by the hash of its text: 10% test, 30% distill, 60% train."""
    bucket = hashlib.sha256(" ".join(question.split()).encode()).digest()[0] % 10
    return "test" if bucket == 0 else "distill" if bucket < 4 else "train"


def items(task: str, split: str, *, seed: int = 0) -> Iterator[Item]:
    """Yield distinct items of one split indefinitely, determined by the seed. Raises UserError for unknown names."""
    if task not in TASKS:
        raise UserError(
            f"tiny:{task}: no such task; choose from {', '.join('tiny:' + name for name in (*TASKS, TRACES))}"
        )
    if split not in SPLITS:
        raise UserError(f"tiny:{task}: no split {split!r}; choose from {', '.join(SPLITS)}")
    rng, seen = random.Random(f"{task}/{split}/{seed}"), set[bytes]()
    repeats = 0
    while True:
        item = TASKS[task](rng)
        if split_of(item["question"]) != split:
            continue
        key = hashlib.sha256(item["question"].encode()).digest()[:8]
        if key in seen:
            repeats += 1
            if repeats > 20_000:
                raise UserError(f"tiny:{task}: split {split} has only about {len(seen)} distinct items; ask for fewer")
            continue
        repeats = 0
        seen.add(key)
        yield item


def rows(task: str, split: str) -> Iterator[dict[str, Any]]:
    """The items of one split as `messages` rows, whose last message is the reference answer; for traces see `traces.row`."""
    if task == TRACES:
        yield from map(traces.row, items("problems", split))
        return
    for item in items(task, split):
        messages: list[Message] = [
            {"role": "user", "content": item["question"]},
            {"role": "assistant", "content": item["output"]},
        ]
        yield {"messages": messages, "answer": item["answer"], "meta": item["meta"]}
