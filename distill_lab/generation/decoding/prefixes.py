"""Find prefixes that prompts share, so that they are computed only once: token lists -> a tree of prefixes.

    prefixes = find_shared_prefixes([[1, 2, 3, 4], [1, 2, 3, 5]], pays=lambda tokens, rows: tokens * rows > 4)

All rows may share a long system prompt, some of them the examples after it, and all samples of a prompt the whole prompt:
each of these is a `Prefix` whose parent is the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

MIN_TOKENS = 32
"""Minimum length of a shared prefix; shorter ones are not worth an attention call."""


@dataclass(slots=True, eq=False)
class Prefix:
    """Tokens that several prompts share, following those of `parent`."""

    ids: list[int]
    parent: Prefix | None
    end: int
    """Tokens from the prompt's start to the end of this prefix."""
    order: int
    """Position in the tree: children come after their parent."""
    num_waiting: int
    """Unfinished rows that need it."""
    keys_values: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [1, key-value heads, tokens, head size]; empty if not computed or freed."""

    def path(self) -> Iterator[Prefix]:
        """This prefix and its ancestors, the longest first."""
        prefix: Prefix | None = self
        while prefix is not None:
            yield prefix
            prefix = prefix.parent

    def row_done(self) -> None:
        """One row fewer needs this path; free prefixes that no row needs anymore."""
        for prefix in self.path():
            prefix.num_waiting -= 1
            if not prefix.num_waiting:
                prefix.keys_values.clear()


def find_shared_prefixes(prompts: Sequence[Sequence[int]], *, pays: Callable[[int, int], bool]) -> list[Prefix | None]:
    """The longest shared prefix of each prompt, if `pays(tokens, rows)`; never includes a prompt's last token."""
    found: list[Prefix | None] = [None] * len(prompts)
    tokens = [np.asarray(ids, dtype=">u4") for ids in prompts]
    keys = [ids.tobytes() for ids in tokens]  # big-endian, so that bytes sort as tokens do
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    common = np.array([_common(tokens[one], tokens[two]) for one, two in pairwise(order)], dtype=np.int64)
    todo: list[tuple[int, int, Prefix | None]] = [(0, len(order), None)]
    count = 0
    while todo:
        low, high, parent = todo.pop()
        start = parent.end if parent else 0
        if high - low > 1:
            end = int(common[low : high - 1].min())
            if end - start >= MIN_TOKENS and pays(end - start, high - low):
                parent = Prefix(list(prompts[order[low]][start:end]), parent, end, count, high - low)
                count += 1
                start = end
            # Rows that share some more tokens may share a further prefix.
            cuts = np.flatnonzero(common[low : high - 1] <= max(end, start + MIN_TOKENS - 1)) + low + 1
            bounds = [low, *cuts.tolist(), high]
            todo += [(one, two, parent) for one, two in pairwise(bounds) if two - one > 1]
        for index in range(low, high):
            found[order[index]] = parent
    return found


def _common(one: np.ndarray, two: np.ndarray) -> int:
    size = min(len(one), len(two)) - 1
    different = np.flatnonzero(one[:size] != two[:size])
    return int(different[0]) if len(different) else size
