"""Sample the next token of every row of a batch: logits -> tokens, by the sampling settings and per-row random numbers.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill_lab.config import SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.decoding.sampling import next_tokens, penalize
from distill_lab.generation.decoding.sequence import DecodingSequence


class Sampler:
    """Samples next tokens; tracks the tokens seen in each row. Does not pick `end_ids` before `min_new_tokens`."""

    def __init__(
        self, sampling: SamplingConfig, *, vocabulary: int, end_ids: Sequence[int], min_new_tokens: int
    ) -> None:
        self._sampling, self._min_new_tokens = sampling, min_new_tokens
        self._vocabulary, self._end_ids = vocabulary, list(end_ids)
        self._seen_BV: torch.Tensor | None = None

    def add(self, rows: Sequence[DecodingSequence], logits_BV: torch.Tensor) -> torch.Tensor:
        """Add rows after the existing ones; return their next tokens. Raises UserError if the model's output is NaN."""
        # Checked once per row, because a model that overflows (fp16) does so on its prompts.
        if bool(logits_BV.isnan().any()):
            raise UserError(
                "the model's output is not a number (NaN): its weights are damaged, or overflow in "
                f"{logits_BV.dtype}; run it on a GPU with bfloat16 or on a CPU"
            )
        first = 0
        if self._sampling.repetition_penalty != 1:
            seen_BV = torch.zeros(len(rows), self._vocabulary, dtype=torch.bool)
            for index, row in enumerate(rows):
                seen_BV[index, row.prompt_ids + row.tokens] = True
            seen_BV = seen_BV.to(logits_BV.device)
            first = 0 if self._seen_BV is None else len(self._seen_BV)
            self._seen_BV = seen_BV if self._seen_BV is None else torch.cat([self._seen_BV, seen_BV])
        return self.next(rows, logits_BV, first=first)

    def keep(self, index: torch.Tensor) -> None:
        """Keep only the rows at `index`, in that order."""
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[index]

    def next(self, rows: Sequence[DecodingSequence], logits_BV: torch.Tensor, *, first: int = 0) -> torch.Tensor:
        """The next token of `rows`, which start at index `first`. int64 [B]."""
        if self._seen_BV is not None:
            logits_BV = logits_BV.float()  # like `generate`: do not round the penalty to half precision
        if self._seen_BV is not None:
            seen_BV = self._seen_BV[first : first + len(rows)]
            logits_BV = penalize(logits_BV, seen_BV, self._sampling.repetition_penalty)
        too_short = [index for index, row in enumerate(rows) if len(row.tokens) < self._min_new_tokens]
        if too_short and self._end_ids:
            logits_BV = logits_BV.clone()
            indices = torch.tensor(too_short, device=logits_BV.device)[:, None]
            logits_BV[indices, torch.tensor(self._end_ids, device=logits_BV.device)] = -torch.inf
        uniform_B = None
        if self._sampling.temperature:
            numbers = [row.uniform(self._sampling.seed) for row in rows]
            device = logits_BV.device
            uniform_B = torch.tensor(numbers, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        next_B = next_tokens(logits_BV, self._sampling, uniform_B)
        if self._seen_BV is not None:
            self._seen_BV[first : first + len(rows)].scatter_(1, next_B[:, None], True)
        return next_B
