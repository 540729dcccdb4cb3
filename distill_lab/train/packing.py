"""Rows of tokens packed into batches: lengths -> which rows stand together -> tensors.

Shapes: B bins, W width of a bin in tokens, T all tokens in one line, N trained positions.

A bin is one line of a batch and holds whole rows, one after the other, with positions that restart at 0. A batch is a
rectangle of several bins rather than one long line because, without FlashAttention, attention costs W for every token.
Measured with a 2-layer model of hidden size 128 on rows of 30 to 80 tokens, one thread, in row tokens trained on per CPU
second: one line of 2,012 tokens 7,000; bins of 512 14,000; of 256 16,000; of 128 17,900; a random batch padded to its
longest row 11,500.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill_lab.chat import Encoded

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
    trained: np.ndarray
    """bool, [L]; whether the next token is trained."""

    def __len__(self) -> int:
        return len(self.input_ids)


_NOTHING = Row(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, bool))


def shifted(encoded: Encoded) -> Row:
    """The row of a conversation. The shift by one between tokens and what they predict happens here and nowhere else."""
    ids = np.asarray(encoded.input_ids, dtype=np.int32)
    return Row(ids[:-1], ids[1:], np.asarray(encoded.loss_mask[1:], dtype=bool))


def pack(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Bins of at most `width` tokens, as lists of indices into `lengths`: best fit decreasing, O(n log width).

    Rows of equal length are taken in their order, so a shuffled input gives other neighbours. A row longer than `width`
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
    lengths: Sequence[int], *, tokens_per_batch: int, width: int, seed: int, epoch: int = 0, mix: bool = True
) -> list[IndexedBatch]:
    """All rows once, as batches of about `tokens_per_batch` tokens, in an order that `seed` and `epoch` decide.

    mix: several rows may share a bin; where False (models that would let them see each other) each has its own, and rows
    of similar length stand together.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths)).tolist()
    shuffled = [lengths[index] for index in order]
    bins_per_batch = max(1, tokens_per_batch // width)
    if mix:
        bins = [[order[index] for index in bin_] for bin_ in pack(shuffled, width)]
        bins = [bins[index] for index in random.permutation(len(bins))]
    else:
        bins = [[order[index]] for index in sorted(range(len(order)), key=lambda index: shuffled[index])]
    batches = [bins[start : start + bins_per_batch] for start in range(0, len(bins), bins_per_batch)]
    return [batches[index] for index in random.permutation(len(batches))]


def cut(batch: IndexedBatch, parts: int) -> list[IndexedBatch]:
    """At most `parts` smaller batches with the same rows: bins apart first, then the rows of a bin."""
    if parts > len(batch):
        batch = [[index] for bin_ in batch for index in bin_]
    parts = min(parts, len(batch))
    return [batch[len(batch) * part // parts : len(batch) * (part + 1) // parts] for part in range(parts)]


def collate(bins: Sequence[Sequence[Row]], *, flat: bool = False) -> dict[str, torch.Tensor | int]:
    """The tensors of one batch.

    input_ids_BW and position_ids_BW (int64) as `input_ids` and `position_ids`; `trained_N` (int64), the indices into
    B * W where the next token is trained, and `labels_N` (int64), those next tokens.

    No attention mask: transformers separates rows where positions restart, if it is given no mask and no cache. Padding
    stands right of the rows, where causal attention does not look. A batch with one row per bin needs no separation at
    all; positions then go on through the padding, which lets attention run without any mask.

    A batch without rows is one token of padding that trains nothing: where processes step together, none may stay away.

    flat: everything in one line ([1, T]) with the row boundaries FlashAttention takes, for models that use it.
    """
    bins = bins or [[_NOTHING]]
    if flat:
        bins = [[row for bin_ in bins for row in bin_]]
    fills = [sum(len(row) for row in bin_) for bin_ in bins]
    shape = (len(bins), max(fills))
    input_ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    target, trained = np.zeros(shape, np.int64), np.zeros(shape, bool)
    restart = any(len(bin_) > 1 for bin_ in bins)
    for line, bin_ in enumerate(bins):
        start = 0
        for row in bin_:
            part = (line, slice(start, start + len(row)))
            input_ids[part], target[part], trained[part] = row.input_ids, row.target, row.trained
            positions[part] = np.arange(len(row))
            start += len(row)
        padding = shape[1] - start
        positions[line, start:] = np.arange(padding) + (0 if restart else start)
    trained_N = np.flatnonzero(trained)
    batch: dict[str, torch.Tensor | int] = {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(positions),
        "trained_N": torch.from_numpy(trained_N),
        "labels_N": torch.from_numpy(target.reshape(-1)[trained_N]),
    }
    if flat:
        lengths = [len(row) for row in bins[0]]
        boundaries = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
        batch |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
        batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return batch
