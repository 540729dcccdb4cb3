"""Rows of tokens packed into batches: lengths -> which rows share a bin -> tensors.

Shapes: B bins, W width of a bin in tokens, T all tokens in one line, R rows, N loss positions.

A bin is one line of a batch and holds whole rows, one after the other, with positions that restart at 0. A batch is a
rectangle of several bins rather than one long line because, without FlashAttention, attention costs W for every token.
Measured with a 2-layer model of hidden size 128 on rows of 30 to 80 tokens, one thread, in row tokens trained on per CPU
second: one line of 2,012 tokens 7,000; bins of 512 14,000; of 256 16,000; of 128 17,900; a random batch padded to its
longest row 11,500.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from distill_lab.chat import Encoded
from distill_lab.train.objectives import LossBatch

T = TypeVar("T")

LINEAR_COST = 1024
"""Width at which attention costs a token as much as all the rest of the model; fitted to the figures above."""
WIDTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Widths of a bin that are tried, in longest rows."""
SAMPLE = 4096
"""Rows that are enough to compare widths on."""

IndexedBatch = list[list[int]]
"""A batch before its tensors are made: per bin the indices of its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One training sequence, ready to be packed: `target[i]` is the token that follows `input_ids[i]`."""

    input_ids: np.ndarray
    """int32, [L]; the conversation without its last token, which predicts nothing."""
    target: np.ndarray
    """int32, [L]; the next token."""
    loss_mask: np.ndarray
    """bool, [L]; whether the student learns the next token."""

    @classmethod
    def from_encoded(cls, encoded: Encoded) -> Row:
        """The row of a conversation. The shift by one between tokens and what they predict happens here and nowhere else."""
        ids = np.asarray(encoded.input_ids, dtype=np.int32)
        return cls(ids[:-1], ids[1:], np.asarray(encoded.loss_mask[1:], dtype=bool))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def id(self) -> bytes:
        """8 bytes that stand for its tokens and loss mask, whatever file or place it came from: the key of a cache."""
        digest = hashlib.blake2b(len(self).to_bytes(4, "little"), digest_size=8)
        for part in (self.input_ids, self.target[-1:], np.packbits(self.loss_mask)):
            digest.update(part.tobytes())
        return digest.digest()


_NOTHING = Row(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, bool))


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Bins of at most `width` tokens, as lists of indices into `lengths`: best fit decreasing, O(n log width).

    Rows of equal length are taken in their order, so a shuffled input gives other neighbors. A row longer than `width`
    is the caller's mistake.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[list[int]]] = {}
    rooms: list[int] = []
    """The keys of `open_bins` in order: tokens that still fit."""
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        assert 0 < length <= width, f"row {index} has {length} tokens, a bin {width}"
        position = bisect_left(rooms, length)
        if position == len(rooms):
            bin_, room = [], width
            bins.append(bin_)
        else:
            room = rooms[position]
            bin_ = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[position]
        bin_.append(index)
        room -= length
        if room:
            if room not in open_bins:
                open_bins[room] = []
                insort(rooms, room)
            open_bins[room].append(bin_)
    return bins


def choose_width(lengths: Sequence[int], tokens_per_batch: int) -> int:
    """The width of bins that makes these rows cheapest, padding and attention counted; at least the longest row."""
    longest = max(lengths)
    sample = lengths[:: -(-len(lengths) // SAMPLE)]

    def cost(width: int) -> int:
        return len(pack(sample, width)) * width * (LINEAR_COST + width)

    return min(
        (int(longest * factor) for factor in WIDTHS if factor == 1.0 or longest * factor <= tokens_per_batch), key=cost
    )


def epoch_batches(
    lengths: Sequence[int],
    *,
    tokens_per_batch: int,
    width: int,
    seed: int,
    epoch: int = 0,
    round_number: int = 0,
    pack_rows: bool = True,
) -> list[IndexedBatch]:
    """All rows once, as batches of about `tokens_per_batch` tokens, in an order that seed, epoch and round decide.

    pack_rows: several rows may share a bin; if False (models that would let them see each other) each has its own, and rows
    of similar length share a batch.
    """
    random = np.random.default_rng((seed, epoch, round_number) if round_number else (seed, epoch))
    order = random.permutation(len(lengths)).tolist()
    shuffled = [lengths[index] for index in order]
    bins_per_batch = max(1, tokens_per_batch // width)
    if pack_rows:
        bins = [[order[index] for index in bin_] for bin_ in pack(shuffled, width)]
        bins = [bins[index] for index in random.permutation(len(bins))]
    else:
        bins = [[order[index]] for index in sorted(range(len(order)), key=lambda index: shuffled[index])]
    batches = [bins[start : start + bins_per_batch] for start in range(0, len(bins), bins_per_batch)]
    return [batches[index] for index in random.permutation(len(batches))]


def split_batch(batch: list[list[T]], parts: int) -> list[list[list[T]]]:
    """At most `parts` smaller batches with the same rows: bins apart first, then the rows of a bin."""
    if parts > len(batch):
        batch = [[row] for bin_ in batch for row in bin_]
    parts = min(parts, len(batch))
    return [batch[len(batch) * part // parts : len(batch) * (part + 1) // parts] for part in range(parts)]


def collate(bins: Sequence[Sequence[Row]], *, flat: bool = False) -> LossBatch:
    """The tensors of one batch.

    No attention mask: transformers separates rows at positions that restart, if it is given no mask and no cache. Padding
    is right of the rows, where causal attention does not look. A batch with one row per bin needs no separation at
    all; positions then go on through the padding, which lets attention run without any mask.

    A batch without rows is one token of padding without a loss position: if processes step together, none may stay away.

    flat: everything in one line ([1, T]) with the row boundaries FlashAttention takes, for models that use it.
    """
    row_ids = tuple(row.id for bin_ in bins for row in bin_)
    bins = bins or [[_NOTHING]]
    if flat:
        bins = [[row for bin_ in bins for row in bin_]]
    fills = [sum(len(row) for row in bin_) for bin_ in bins]
    shape = (len(bins), max(fills))
    input_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    target, loss_mask = np.zeros(shape, np.int64), np.zeros(shape, bool)
    restart = any(len(bin_) > 1 for bin_ in bins)
    for line, bin_ in enumerate(bins):
        start = 0
        for row in bin_:
            part = (line, slice(start, start + len(row)))
            input_ids[part], target[part], loss_mask[part] = row.input_ids, row.target, row.loss_mask
            positions[part] = np.arange(len(row))
            start += len(row)
        padding = shape[1] - start
        positions[line, start:] = np.arange(padding) + (0 if restart else start)
    loss_positions_N = np.flatnonzero(loss_mask)
    lengths = [len(row) for row in bins[0]]
    return LossBatch(
        input_ids_BW=torch.from_numpy(input_ids),
        position_ids_BW=torch.from_numpy(positions),
        cu_seqlens_R1=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)) if flat else None,
        max_seqlen=max(lengths) if flat else None,
        loss_positions_N=torch.from_numpy(loss_positions_N),
        labels_N=torch.from_numpy(target.reshape(-1)[loss_positions_N]),
        row_ids_R=row_ids,
    )
