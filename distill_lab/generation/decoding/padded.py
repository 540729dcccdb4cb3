"""A batch for models that `flat.py` cannot serve: sliding windows, linear attention, attention of their own.

Prompts stand at the right, padding at the left; no row can join later. Shapes: B rows, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from distill_lab.generation.decoding.choice import Choice
from distill_lab.generation.decoding.kv_cache import growing_cache
from distill_lab.generation.decoding.row import Row


class PaddedBatch:
    """Rows in the making. takes_positions, last_only: what the model's forward accepts."""

    leave_share = 1 / 8
    can_join = False

    def __init__(
        self,
        model: PreTrainedModel,
        choice: Choice,
        *,
        pad_id: int,
        room: int,
        takes_positions: bool,
        last_only: dict[str, Any],
    ) -> None:
        self.rows: list[Row] = []
        self._model, self._choice, self._pad_id = model, choice, pad_id
        self._takes_positions, self._last_only = takes_positions, last_only
        self._cache = growing_cache(model.config, room=room)
        self._length = 0
        """Tokens in the cache, padding included."""

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> list[tuple[Row, int]]:
        """Begin with `rows`; each with its next token."""
        assert not self.rows, "rows join an empty batch only"
        self.rows = list(rows)
        inputs = [row.prompt_ids + row.tokens for row in rows]
        length = max(map(len, inputs))
        device = self._model.device
        self._ids_BT = torch.tensor([[self._pad_id] * (length - len(ids)) + ids for ids in inputs], device=device)
        self._padding_B1 = torch.tensor([[length - len(ids)] for ids in inputs], device=device)
        self._padded = any(len(ids) < length for ids in inputs)
        return self._take(self._choice.join(self.rows, self._forward()))

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """The next token of every row."""
        return self._take(self._choice.next(self.rows, self._forward()))

    @torch.inference_mode()
    def leave(self) -> None:
        """Take the rows that are done out."""
        places = [place for place, row in enumerate(self.rows) if not row.done]
        self.rows = [self.rows[place] for place in places]
        index: Any = torch.tensor(places, dtype=torch.long, device=self._ids_BT.device)
        self._cache.reorder_cache(index)
        self._ids_BT, self._padding_B1 = self._ids_BT[index], self._padding_B1[index]
        self._choice.keep(index)

    def _take(self, next_B: torch.Tensor) -> list[tuple[Row, int]]:
        self._ids_BT = next_B[:, None]
        return list(zip(self.rows, next_B.tolist(), strict=True))

    def _forward(self) -> torch.Tensor:
        fresh = self._ids_BT.shape[1]
        self._length += fresh
        inputs: dict[str, torch.Tensor] = {}
        if self._padded:
            columns_1T = torch.arange(self._length, device=self._ids_BT.device)[None]
            inputs["attention_mask"] = (columns_1T >= self._padding_B1).long()
            if self._takes_positions:
                inputs["position_ids"] = (columns_1T[:, -fresh:] - self._padding_B1).clamp(min=0)
        output = self._model(
            input_ids=self._ids_BT, past_key_values=self._cache, use_cache=True, **inputs, **self._last_only
        )
        return output.logits[:, -1]
