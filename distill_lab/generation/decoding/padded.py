"""A padded batch for models that `flat.py` does not support: sliding windows, linear attention, custom attention.

Prompts are padded on the left; no row can be added later. Shapes: B rows, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from distill_lab.generation.decoding.kv_cache import growing_cache
from distill_lab.generation.decoding.sampler import Sampler
from distill_lab.generation.decoding.sequence import DecodingSequence, NextTokens


class PaddedBatch:
    """Rows being decoded. takes_positions, last_only: which arguments the model's forward accepts."""

    evict_fraction = 1 / 8
    can_add = False

    def __init__(
        self,
        model: PreTrainedModel,
        sampler: Sampler,
        *,
        pad_id: int,
        headroom: int,
        takes_positions: bool,
        last_only: dict[str, int],
    ) -> None:
        self.rows: list[DecodingSequence] = []
        self._model, self._sampler, self._pad_id = model, sampler, pad_id
        self._takes_positions, self._last_only = takes_positions, last_only
        self._cache = growing_cache(model.config, headroom=headroom)
        self._length = 0
        """Tokens in the cache, including padding."""

    @torch.inference_mode()
    def add(self, rows: Sequence[DecodingSequence]) -> NextTokens:
        """Start with `rows`; return each with its next token."""
        assert not self.rows, "rows can only be added to an empty batch"
        self.rows = list(rows)
        inputs = [row.prompt_ids + row.tokens for row in rows]
        length = max(map(len, inputs))
        device = self._model.device
        self._ids_BT = torch.tensor([[self._pad_id] * (length - len(ids)) + ids for ids in inputs], device=device)
        self._padding_B1 = torch.tensor([[length - len(ids)] for ids in inputs], device=device)
        self._padded = any(len(ids) < length for ids in inputs)
        return self._take(self._sampler.add(self.rows, self._forward()))

    @torch.inference_mode()
    def step(self) -> NextTokens:
        """The next token of every row."""
        return self._take(self._sampler.next(self.rows, self._forward()))

    @torch.inference_mode()
    def evict(self) -> None:
        """Remove finished rows."""
        kept = [number for number, row in enumerate(self.rows) if not row.done]
        self.rows = [self.rows[number] for number in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self._ids_BT.device)
        self._cache.reorder_cache(index)  # pyright: ignore[reportArgumentType] - no function makes a LongTensor
        self._ids_BT, self._padding_B1 = self._ids_BT[index], self._padding_B1[index]
        self._sampler.keep(index)

    def _take(self, next_B: torch.Tensor) -> NextTokens:
        self._ids_BT = next_B[:, None]
        return list(zip(self.rows, next_B.tolist(), strict=True))

    def _forward(self) -> torch.Tensor:
        num_new = self._ids_BT.shape[1]
        self._length += num_new
        inputs: dict[str, torch.Tensor] = {}
        if self._padded:
            columns_1T = torch.arange(self._length, device=self._ids_BT.device)[None]
            inputs["attention_mask"] = (columns_1T >= self._padding_B1).long()
            if self._takes_positions:
                inputs["position_ids"] = (columns_1T[:, -num_new:] - self._padding_B1).clamp(min=0)
        output = self._model(
            input_ids=self._ids_BT, past_key_values=self._cache, use_cache=True, **inputs, **self._last_only
        )
        return output.logits[:, -1]
