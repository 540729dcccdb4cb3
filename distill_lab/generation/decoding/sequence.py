"""A sequence being decoded: one completion of one prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distill_lab.generation.decoding.prefixes import Prefix
from distill_lab.generation.decoding.sampling import BLOCK, uniforms
from distill_lab.types import Prompt


@dataclass(slots=True, eq=False)
class DecodingSequence:
    """A prompt's tokens, the tokens generated so far, and the prefix it shares with others."""

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    limit: int
    """Maximum number of generated tokens."""
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    prefix: Prefix | None = None
    _numbers: np.ndarray | None = None
    _block: int = -1

    @property
    def num_own(self) -> int:
        """Number of tokens so far after the shared prefix."""
        return len(self.prompt_ids) + len(self.tokens) - (self.prefix.end if self.prefix else 0)

    def own_ids(self) -> list[int]:
        """Tokens so far after the shared prefix."""
        start = self.prefix.end if self.prefix else 0
        return self.prompt_ids[start:] + self.tokens

    def uniform(self, seed: int) -> float:
        """The random number in [0, 1) for its next token; see `sampling.uniforms`."""
        block, column = divmod(len(self.tokens), BLOCK)
        if self._numbers is None or block != self._block:
            self._numbers, self._block = uniforms(seed, self.prompt.id, self.sample, block=block), block
        return float(self._numbers[column])


NextTokens = list[tuple[DecodingSequence, int]]
"""Sequences of a batch, each with its next token."""
