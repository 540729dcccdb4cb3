"""A preallocated KV cache, updated in place instead of concatenated at each step.

    cache = growing_cache(model.config, headroom=512)

Replaces transformers' DynamicCache, whose full-attention layers copy everything at every token. Other layers (sliding
window, linear attention) remain those of transformers.
Shapes: B rows, G key-value heads, T tokens, D head size.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """One full-attention layer. `keys` and `values` are views of buffers that grow by doubling."""

    def __init__(self, headroom: int) -> None:
        super().__init__()
        self.headroom = headroom
        """Tokens to allocate after the first ones."""
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append key_states and value_states [B, G, T, D]; return all so far."""
        end = self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys_BGTD = _empty(key_states, end + self.headroom)
            self._values_BGTD = _empty(value_states, end + self.headroom)
        elif end > self._keys_BGTD.shape[-2]:
            self._keys_BGTD = _enlarged(self._keys_BGTD, self.length, 2 * end)
            self._values_BGTD = _enlarged(self._values_BGTD, self.length, 2 * end)
        self._keys_BGTD[:, :, self.length : end] = key_states
        self._values_BGTD[:, :, self.length : end] = value_states
        self._show(end)
        return self._keys_BGTD[:, :, :end], self._values_BGTD[:, :, :end]

    def get_seq_length(self) -> int:
        """Number of tokens in the cache."""
        return self.length

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep the rows `beam_idx`, in that order."""
        if self.is_initialized:
            self._keys_BGTD = _rows(self._keys_BGTD, beam_idx, self.length)
            self._values_BGTD = _rows(self._values_BGTD, beam_idx, self.length)
            self._show(self.length)

    def reset(self) -> None:
        """Remove all tokens."""
        super().reset()
        self.length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -tokens_to_remove tokens."""
        if self.is_initialized:
            self._show(self.length - abs(tokens_to_remove))

    def _show(self, length: int) -> None:
        self.length = length
        self.keys = self._keys_BGTD[:, :, :length]
        self.values = self._values_BGTD[:, :, :length]


def growing_cache(config: PreTrainedConfig, *, headroom: int) -> DynamicCache:
    """The cache for a model of `config`; full-attention layers allocate `headroom` tokens after the first ones."""
    cache = DynamicCache(config=config)
    if cache.layers:
        cache.layers = [GrowingLayer(headroom) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _empty(like_BGTD: torch.Tensor, tokens: int) -> torch.Tensor:
    rows, heads, _, size = like_BGTD.shape
    return like_BGTD.new_empty(rows, heads, tokens, size)


def _enlarged(old_BGTD: torch.Tensor, length: int, tokens: int) -> torch.Tensor:
    new_BGTD = _empty(old_BGTD, tokens)
    new_BGTD[:, :, :length] = old_BGTD[:, :, :length]
    return new_BGTD


def _rows(old_BGTD: torch.Tensor, rows: torch.Tensor, length: int) -> torch.Tensor:
    _, heads, tokens, size = old_BGTD.shape
    new_BGTD = old_BGTD.new_empty(len(rows), heads, tokens, size)
    new_BGTD[:, :, :length] = old_BGTD[:, :, :length].index_select(0, rows.to(old_BGTD.device))
    return new_BGTD
