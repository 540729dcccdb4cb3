"""KV cache of rows that end in the same column, updated in place.

Rows of a slab are right-aligned: shorter ones are padded on the left, and the padding is masked. All rows write their next
token to the same column; evicted rows are overwritten with the last rows; and a slab can absorb another whose rows are
hardly shorter. Its rows therefore always attend to two views, one for keys and one for values.
Shapes: B rows, G key-value heads, T columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class BatchSlab:
    """lengths: current lengths of the rows; headroom: columns to allocate at once for future tokens."""

    def __init__(self, lengths: Sequence[int], *, num_layers: int, headroom: int) -> None:
        self.length = max(lengths)
        """Columns in use."""
        self.paddings = [self.length - length for length in lengths]
        """Left padding of each row."""
        self._headroom = headroom
        self._capacity = self.length + headroom
        self._keys: list[torch.Tensor] = [torch.empty(0)] * num_layers
        self._values: list[torch.Tensor] = [torch.empty(0)] * num_layers
        self._changed()

    def __len__(self) -> int:
        return len(self.paddings)

    def store(self, layer: int, keys_BGTD: torch.Tensor, values_BGTD: torch.Tensor) -> None:
        """Store the first `length` columns of keys and values of all rows."""
        for cache, new_BGTD in ((self._keys, keys_BGTD), (self._values, values_BGTD)):
            rows, heads, _, size = new_BGTD.shape
            cache[layer] = new_BGTD.new_empty(rows, heads, self._capacity, size)
            cache[layer][:, :, : self.length] = new_BGTD

    def append(self, layer: int, keys_BGD: torch.Tensor, values_BGD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next column of one layer; return all keys and values including it, [B, G, length + 1, D]."""
        rows, end = len(self.paddings), self.length + 1
        keys_BGTD, values_BGTD = self._keys[layer][:rows, :, :end], self._values[layer][:rows, :, :end]
        keys_BGTD[:, :, -1] = keys_BGD
        values_BGTD[:, :, -1] = values_BGD
        return keys_BGTD, values_BGTD

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """Additive mask: 0 for tokens, -inf for padding, [B, 1, 1, length + 1]; None if no row has padding."""
        if self._unmasked:
            return None
        if self._mask_BT is None:
            columns_T = torch.arange(self._capacity, device=like.device)
            padding_B1 = torch.tensor(self.paddings, device=like.device)[:, None]
            mask_BT = like.new_zeros(len(self), self._capacity)
            self._mask_BT = mask_BT.masked_fill_(columns_T < padding_B1, -torch.inf)
        return self._mask_BT[:, None, None, : self.length + 1]

    def make_room(self) -> None:
        """Make sure that one more column fits."""
        if self.length == self._capacity:
            self._resize(len(self), self.length + max(self._headroom, self.length))
            self._changed()

    def evict(self, indices: Sequence[int]) -> list[int]:
        """Remove the rows at `indices`. Returns the previous index of each remaining row."""
        gone = set(indices)
        left = len(self) - len(gone)
        holes = sorted(index for index in gone if index < left)
        moved = [index for index in range(left, len(self)) if index not in gone]
        order = list(range(left))
        for hole, index in zip(holes, moved, strict=True):
            order[hole] = index
        if holes:
            for cache in (self._keys, self._values):
                device = cache[0].device
                to, source = torch.tensor(holes, device=device), torch.tensor(moved, device=device)
                for tensor_BGTD in cache:
                    tensor_BGTD[to, :, : self.length] = tensor_BGTD[source, :, : self.length]
        self.paddings = [self.paddings[index] for index in order]
        self._trim()
        self._changed()
        return order

    def absorb(self, other: BatchSlab) -> None:
        """Add the rows of `other`, which has at most as many columns as this slab."""
        shift, before, after = self.length - other.length, len(self), len(self) + len(other)
        if after > len(self._keys[0]):
            self._resize(max(after, 5 * before // 4), self._capacity)
        for cache, other_cache in ((self._keys, other._keys), (self._values, other._values)):
            for tensor_BGTD, other_BGTD in zip(cache, other_cache, strict=True):
                # Attention multiplies masked values by zero, so they must not be NaN.
                tensor_BGTD[before:after, :, :shift] = 0
                tensor_BGTD[before:after, :, shift : self.length] = other_BGTD[: len(other), :, : other.length]
        self.paddings += [shift + padding for padding in other.paddings]
        self._changed()

    def _changed(self) -> None:
        self._mask_BT: torch.Tensor | None = None
        self._unmasked = not any(self.paddings)

    def _trim(self) -> None:
        """Drop columns that only evicted rows used, if they are more than half."""
        spare = min(self.paddings, default=0)
        if 2 * spare > self.length:
            self.length -= spare
            self.paddings = [padding - spare for padding in self.paddings]
            self._resize(len(self), self.length + self._headroom, skip=spare)

    def _resize(self, rows: int, columns: int, *, skip: int = 0) -> None:
        """Reallocate for `rows` and `columns`; copy the contents without the first `skip` columns."""
        self._capacity, kept = columns, min(rows, len(self))
        for cache in (self._keys, self._values):
            for layer, old_BGTD in enumerate(cache):
                _, heads, _, size = old_BGTD.shape
                cache[layer] = old_BGTD.new_empty(rows, heads, columns, size)
                cache[layer][:kept, :, : self.length] = old_BGTD[:kept, :, skip : skip + self.length]
