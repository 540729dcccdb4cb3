"""The next token of every row of a batch: logits -> tokens, by the sampling's rules and each row's own numbers.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from distill_lab.config import SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.decoding.row import Row
from distill_lab.generation.decoding.sampling import next_tokens, penalize


class Choice:
    """Holds the tokens each row of a batch has seen. `end_ids` are not chosen before `min_new_tokens`."""

    def __init__(
        self, sampling: SamplingConfig, *, vocabulary: int, end_ids: Sequence[int], min_new_tokens: int
    ) -> None:
        self._sampling, self._min_new_tokens = sampling, min_new_tokens
        self._vocabulary, self._end_ids = vocabulary, list(end_ids)
        self._seen_BV: torch.Tensor | None = None

    def join(self, rows: Sequence[Row], logits_BV: torch.Tensor) -> torch.Tensor:
        """The next tokens of rows that come after those there are. Raises UserError where the output is not a number."""
        # Once per row: a model that overflows (fp16) does so on its prompts.
        if bool(logits_BV.isnan().any()):
            raise UserError(
                "the model's output is not a number (NaN): its weights are damaged, or overflow in "
                f"{logits_BV.dtype}; load it on a GPU with bfloat16 or on a CPU"
            )
        first = 0
        if self._sampling.repetition_penalty != 1:
            seen_BV = torch.zeros(len(rows), self._vocabulary, dtype=torch.bool)
            for place, row in enumerate(rows):
                seen_BV[place, row.prompt_ids + row.tokens] = True
            seen_BV = seen_BV.to(logits_BV.device)
            first = 0 if self._seen_BV is None else len(self._seen_BV)
            self._seen_BV = seen_BV if self._seen_BV is None else torch.cat([self._seen_BV, seen_BV])
        return self.next(rows, logits_BV, first=first)

    def keep(self, index: torch.Tensor) -> None:
        """The rows are now those that stood at `index`."""
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[index]

    def next(self, rows: Sequence[Row], logits_BV: torch.Tensor, *, first: int = 0) -> torch.Tensor:
        """The next token of `rows`, which stand from `first` on. int64 [B]."""
        if self._seen_BV is not None:
            logits_BV = logits_BV.float()  # as `generate` does: a penalty is not rounded to half precision
        if self._seen_BV is not None:
            seen_BV = self._seen_BV[first : first + len(rows)]
            logits_BV = penalize(logits_BV, seen_BV, self._sampling.repetition_penalty)
        held = [place for place, row in enumerate(rows) if len(row.tokens) < self._min_new_tokens]
        if held and self._end_ids:
            logits_BV = logits_BV.clone()
            places = torch.tensor(held, device=logits_BV.device)[:, None]
            logits_BV[places, torch.tensor(self._end_ids, device=logits_BV.device)] = -torch.inf
        uniform_B = None
        if self._sampling.temperature:
            numbers = [row.uniform(self._sampling.seed) for row in rows]
            device = logits_BV.device
            uniform_B = torch.tensor(numbers, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        next_B = next_tokens(logits_BV, self._sampling, uniform_B)
        if self._seen_BV is not None:
            self._seen_BV[first : first + len(rows)].scatter_(1, next_B[:, None], True)
        return next_B
