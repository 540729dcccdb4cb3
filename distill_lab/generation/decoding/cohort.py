"""Keys and values of rows that end in the same column, written in place.

Rows of a cohort stand at the right: a shorter one has padding at its left, which is masked. All write their next token to
the same column, rows leave by being overwritten with the last ones, and a cohort can take in another whose rows are
hardly shorter. What its own rows attend to is therefore two views, whatever joined or left.
Shapes: B rows, G key-value heads, T columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class BatchSlab:
    """`lengths` of its rows now; `room`: columns for tokens to come that are made at once."""

    def __init__(self, lengths: Sequence[int], *, num_layers: int, room: int) -> None:
        self.length = max(lengths)
        """Columns in use."""
        self.paddings = [self.length - length for length in lengths]
        """Of each row, at the left."""
        self._room = room
        self._capacity = self.length + room
        self._keys: list[torch.Tensor] = [torch.empty(0)] * num_layers
        self._values: list[torch.Tensor] = [torch.empty(0)] * num_layers
        self._changed()

    def __len__(self) -> int:
        return len(self.paddings)

    def store(self, layer: int, keys_BGTD: torch.Tensor, values_BGTD: torch.Tensor) -> None:
        """The first keys and values of all rows, `length` columns of them."""
        for held, fresh_BGTD in ((self._keys, keys_BGTD), (self._values, values_BGTD)):
            rows, heads, _, size = fresh_BGTD.shape
            held[layer] = fresh_BGTD.new_empty(rows, heads, self._capacity, size)
            held[layer][:, :, : self.length] = fresh_BGTD

    def append(self, layer: int, keys_BGD: torch.Tensor, values_BGD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next column of one layer; returns all keys and values with it, [B, G, length + 1, D]."""
        rows, end = len(self.paddings), self.length + 1
        keys_BGTD, values_BGTD = self._keys[layer][:rows, :, :end], self._values[layer][:rows, :, :end]
        keys_BGTD[:, :, -1] = keys_BGD
        values_BGTD[:, :, -1] = values_BGD
        return keys_BGTD, values_BGTD

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """0 where a row may look, -inf on its padding, [B, 1, 1, length + 1]; None where no row has any."""
        if self._unmasked:
            return None
        if self._mask_BT is None:
            columns_T = torch.arange(self._capacity, device=like.device)
            padding_B1 = torch.tensor(self.paddings, device=like.device)[:, None]
            mask_BT = like.new_zeros(len(self), self._capacity)
            self._mask_BT = mask_BT.masked_fill_(columns_T < padding_B1, -torch.inf)
        return self._mask_BT[:, None, None, : self.length + 1]

    def make_room(self) -> None:
        """See that one more column can be written."""
        if self.length == self._capacity:
            self._resize(len(self), self.length + max(self._room, self.length))
            self._changed()

    def leave(self, places: Sequence[int]) -> list[int]:
        """Take the rows at `places` out. Returns where each row left in it stood before."""
        gone = set(places)
        left = len(self) - len(gone)
        holes = sorted(place for place in gone if place < left)
        moved = [place for place in range(left, len(self)) if place not in gone]
        order = list(range(left))
        for hole, place in zip(holes, moved, strict=True):
            order[hole] = place
        if holes:
            for held in (self._keys, self._values):
                device = held[0].device
                to, source = torch.tensor(holes, device=device), torch.tensor(moved, device=device)
                for tensor_BGTD in held:
                    tensor_BGTD[to, :, : self.length] = tensor_BGTD[source, :, : self.length]
        self.paddings = [self.paddings[place] for place in order]
        self._trim()
        self._changed()
        return order

    def absorb(self, other: BatchSlab) -> None:
        """Take in the rows of `other`, which has no more columns than this one."""
        shift, before, after = self.length - other.length, len(self), len(self) + len(other)
        if after > len(self._keys[0]):
            self._resize(max(after, 5 * before // 4), self._capacity)
        for held, taken in ((self._keys, other._keys), (self._values, other._values)):
            for tensor_BGTD, other_BGTD in zip(held, taken, strict=True):
                # What is masked is multiplied by zero all the same, which must not meet a NaN.
                tensor_BGTD[before:after, :, :shift] = 0
                tensor_BGTD[before:after, :, shift : self.length] = other_BGTD[: len(other), :, : other.length]
        self.paddings += [shift + padding for padding in other.paddings]
        self._changed()

    def _changed(self) -> None:
        self._mask_BT: torch.Tensor | None = None
        self._unmasked = not any(self.paddings)

    def _trim(self) -> None:
        """Give up columns that only rows that left have used, where that is half of them."""
        spare = min(self.paddings, default=0)
        if 2 * spare > self.length:
            self.length -= spare
            self.paddings = [padding - spare for padding in self.paddings]
            self._resize(len(self), self.length + self._room, skip=spare)

    def _resize(self, rows: int, columns: int, *, skip: int = 0) -> None:
        """New tensors for `rows` and `columns` with what there is, without the first `skip` columns."""
        self._capacity, kept = columns, min(rows, len(self))
        for held in (self._keys, self._values):
            for layer, old_BGTD in enumerate(held):
                _, heads, _, size = old_BGTD.shape
                held[layer] = old_BGTD.new_empty(rows, heads, columns, size)
                held[layer][:kept, :, : self.length] = old_BGTD[:kept, :, skip : skip + self.length]
