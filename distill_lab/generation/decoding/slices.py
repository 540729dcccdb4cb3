"""How many prompt tokens are read in one pass: as many as take a few seconds by this machine's measured pace.

    slices = Slices(first=256, most=8192)
    for part in slices.of(tokens):              parts of a long prompt
        with slices.timed(len(part)): ...       the next size follows from what this one took

A pass that takes minutes would leave whoever waits without a sign of life, and its activations in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

FEWEST_TOKENS = 64
"""A smaller pass reads the weights for too few tokens."""
SHORTEST_S, MAX_S = 1.0, 4.0
"""Seconds of a pass: the next one has twice as many tokens after a shorter one, half as many after a longer one."""


class Slices:
    """first, most: tokens of the first pass, and the most there may be in one."""

    def __init__(self, *, first: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.clock = most, clock
        self.size = min(max(int(min(first, most)), FEWEST_TOKENS), most)
        """Tokens of the next pass."""
        self.prefix_seconds = 0.0
        """Spent so far on what prompts share."""

    def of(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """`tokens` in parts, each of the size that is right when it is taken."""
        start = 0
        while start < len(tokens):
            # No crumb at the end: half a slice more takes hardly longer than a pass of its own.
            end = start + self.size if len(tokens) - start > 1.5 * self.size else len(tokens)
            yield tokens[start:end]
            start = end

    @contextmanager
    def timed(self, num_tokens: int) -> Iterator[None]:
        """The block is a pass over so many tokens; one that fails says nothing."""
        start = self.clock()
        yield
        seconds = self.clock() - start
        if seconds > MAX_S:
            self.size = max(min(self.size, num_tokens) // 2, FEWEST_TOKENS)
        elif seconds < SHORTEST_S and 2 * num_tokens > self.size:
            self.size = min(2 * self.size, self.most)
