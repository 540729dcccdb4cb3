"""Choose how many prompt tokens to read in one pass, so that it takes a few seconds at this machine's measured speed.

    slices = Slices(first=256, maximum=8192)
    for part in slices.of(tokens):              parts of a long prompt
        with slices.timed(len(part)): ...       its duration determines the next size

A pass of minutes would show the user no progress and would need memory for many activations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

MIN_TOKENS = 64
"""Minimum tokens per pass; fewer would not be worth reading the weights."""
MIN_S, MAX_S = 1.0, 4.0
"""Target seconds of a pass: after a shorter one the next has twice as many tokens, after a longer one half as many."""


class Slices:
    """first: tokens of the first pass; maximum: maximum tokens per pass."""

    def __init__(self, *, first: float, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum, self.clock = maximum, clock
        self.size = min(max(int(min(first, maximum)), MIN_TOKENS), maximum)
        """Tokens of the next pass."""
        self.prefix_seconds = 0.0
        """Seconds spent so far on shared prefixes."""

    def of(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split `tokens` into parts, each of the current `size`."""
        start = 0
        while start < len(tokens):
            # Avoid a small last part: half a slice more takes hardly longer than a separate pass.
            end = start + self.size if len(tokens) - start > 1.5 * self.size else len(tokens)
            yield tokens[start:end]
            start = end

    @contextmanager
    def timed(self, num_tokens: int) -> Iterator[None]:
        """Time a block that is a pass over `num_tokens` tokens; ignore passes that fail."""
        start = self.clock()
        yield
        seconds = self.clock() - start
        if seconds > MAX_S:
            self.size = max(min(self.size, num_tokens) // 2, MIN_TOKENS)
        elif seconds < MIN_S and 2 * num_tokens > self.size:
            self.size = min(2 * self.size, self.maximum)
