"""The bytes of a teacher cache: draws, or top-k probabilities, of rows -> one string of bytes a row, and back.

    data = encode_draws(draws, num_positions, vocabulary)           for one row
    found = decode_draws(data, starts, num_positions, vocabulary)   for many rows at once

Shapes: P positions of one row or of many, M entries of all positions, R rows, K ids of a position.

At most positions the teacher is sure, so what is not stored matters most. The reader knows the training row, therefore its
label costs nothing: not its id, and not its count, because all counts of a position add up to the number of draws. The
other ids are ranks in a table of token frequencies, sorted, and stored as gaps; a small gap takes a nibble. Ids that were
drawn once, most of them, need no count. Nothing is read bit by bit: classes give widths, a running sum of widths gives
places, and one gather reads all values.

A row of draws:   P bytes, the number of ids drawn more than once and of those drawn once, a nibble each (15: see the next)
                  a byte for every 15 above, what is beyond 15
                  nibbles: gap classes of the ids drawn more than once, their count classes, gap classes of the others
                  the remaining bits of all these, in the same order
A row of top-k:   nibbles: P * K gap classes; their remaining bits; P * (K + 1) bytes, -log p in steps of 1/16 nat;
                  all K + 1 of them 255 if nothing is known of the position
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GAP_WIDTHS = (*range(14), 15, 20)
"""Bits that follow a gap's class: class 0 is gap 0, class 1 gaps 1 and 2, ...; the last reaches over a million ids."""
COUNT_WIDTHS = (*(0,) * 8, 1, 2, 3, 4, 5, 6, 7, 8)
"""The same for a count less 2."""
ESCAPE = 15
MAX_DRAWS = 254
"""Most draws of a position: numbers of ids then fit their byte."""
STEPS_PER_NAT = 16
"""Of a top-k probability's logarithm; the largest error is a 32nd of a nat, 3% of the probability."""
LAST_STEP = 255
"""The largest byte of a top-k probability. Probabilities that sum to 1 are never all so small."""
PAD = 4
"""Bytes after the last one that may be read with it."""


class CacheFormatError(ValueError):
    """Bytes that are not a row's."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids and their ranks by frequency."""

    rank_of: np.ndarray
    """int32, [V]: the rank of each id, 0 for the most frequent."""
    id_of: np.ndarray
    """int32, [V]: the id of each rank."""

    @classmethod
    def by_frequency(cls, counts_V: np.ndarray) -> Vocabulary:
        """Ranks from token counts; ids of one count in their order."""
        id_of = np.argsort(-counts_V, kind="stable").astype(np.int32)
        return cls.of_ranks(id_of)

    @classmethod
    def of_ranks(cls, id_of: np.ndarray) -> Vocabulary:
        """From the id of each rank."""
        rank_of = np.empty_like(id_of)
        rank_of[id_of] = np.arange(len(id_of), dtype=np.int32)
        return cls(rank_of, id_of)


@dataclass(frozen=True)
class Counts:
    """What was drawn at each of P positions besides the label: distinct ids and how often."""

    sizes_P: np.ndarray
    """int64: distinct ids at each position."""
    ids_M: np.ndarray
    """int64, position by position, in any order inside one."""
    counts_M: np.ndarray
    """int64, at least 1."""


def encode_draws(drawn: Counts, vocabulary: Vocabulary) -> bytes:
    """One row."""
    place_M = np.repeat(np.arange(len(drawn.sizes_P)), drawn.sizes_P)
    rank_M = vocabulary.rank_of[drawn.ids_M].astype(np.int64)
    single_M = drawn.counts_M == 1
    order = np.lexsort((rank_M, place_M, single_M))
    place_M, rank_M, count_M = place_M[order], rank_M[order], drawn.counts_M[order]
    num_multi = int((~single_M).sum())
    numbers_P2 = np.stack(
        [np.bincount(place, minlength=len(drawn.sizes_P)) for place in (place_M[:num_multi], place_M[num_multi:])], 1
    )
    heads_P2 = np.minimum(numbers_P2, ESCAPE).astype(np.uint8)
    beyond = (numbers_P2 - ESCAPE)[numbers_P2 >= ESCAPE].astype(np.uint8)
    gap_M = np.concatenate([_gaps(rank_M[part], place_M[part]) for part in (slice(num_multi), slice(num_multi, None))])
    values = np.concatenate([gap_M[:num_multi], count_M[:num_multi] - 2, gap_M[num_multi:]])
    is_count = np.zeros(len(values), bool)
    is_count[num_multi : 2 * num_multi] = True
    return (heads_P2[:, 0] | heads_P2[:, 1] << 4).tobytes() + beyond.tobytes() + _pack(values, is_count)


def decode_draws(data: np.ndarray, starts_R: np.ndarray, positions_R: np.ndarray, vocabulary: Vocabulary) -> Counts:
    """Many rows at once, their positions one after the other.

    data: uint8 with PAD bytes at its end that belong to no row. starts_R: where each row begins. positions_R: how many
    positions each has. Raises CacheFormatError for bytes that lead out of `data` or of the vocabulary.
    """
    heads_P = data[_ranges(starts_R, positions_R)]
    numbers_P2 = np.stack([heads_P & 15, heads_P >> 4], 1).astype(np.int64)
    row_ends = np.concatenate([[0], np.cumsum(positions_R)])
    escaped_P2 = numbers_P2 == ESCAPE
    beyond_R = _per_row(escaped_P2.sum(1), row_ends)
    at = starts_R + positions_R
    _inside(data, at + beyond_R)
    numbers_P2[escaped_P2] += data[_ranges(at, beyond_R)]
    multi_R, single_R = (_per_row(numbers_P2[:, kind], row_ends) for kind in (0, 1))
    values_R = 2 * multi_R + single_R
    # Inside the stream of all rows: gaps of the first kind, their counts, gaps of the second kind, row by row.
    first_R = np.cumsum(values_R) - values_R
    is_count = np.zeros(int(values_R.sum()), bool)
    is_count[_ranges(first_R + multi_R, multi_R)] = True
    values = _unpack(data, at + beyond_R, values_R, is_count)
    gaps = (values[_ranges(first_R, multi_R)], values[_ranges(first_R + 2 * multi_R, single_R)])
    parts = []
    for kind, gap_M in enumerate(gaps):
        size_P = numbers_P2[:, kind]
        rank_M = _ranks(gap_M, size_P)
        if len(rank_M) and rank_M.max() >= len(vocabulary.id_of):
            raise CacheFormatError("a rank beyond the vocabulary")
        count_M = np.ones(len(gap_M), np.int64) if kind else values[_ranges(first_R + multi_R, multi_R)] + 2
        parts.append((size_P, vocabulary.id_of[rank_M].astype(np.int64), count_M))
    return _interleaved(parts)


def encode_top_k(ids_PK: np.ndarray, log_p_PB: np.ndarray, vocabulary: Vocabulary) -> bytes:
    """One row. log_p_PB: [P, K + 1], natural logarithms of the ids' probabilities and of what all others have together; NaN
    at positions of which nothing is known."""
    rank_PK = vocabulary.rank_of[ids_PK].astype(np.int64)
    order_PK = np.argsort(rank_PK, 1)
    rank_PK = np.take_along_axis(rank_PK, order_PK, 1)
    gap_PK = np.diff(rank_PK, axis=1, prepend=-1) - 1
    log_p_PB = np.concatenate([np.take_along_axis(log_p_PB[:, :-1], order_PK, 1), log_p_PB[:, -1:]], 1)
    steps_PB = np.clip(np.rint(-log_p_PB * STEPS_PER_NAT), 0, LAST_STEP)
    steps_PB = np.nan_to_num(steps_PB, nan=LAST_STEP).astype(np.uint8)
    return _pack(gap_PK.ravel(), np.zeros(gap_PK.size, bool)) + steps_PB.tobytes()


def decode_top_k(
    data: np.ndarray, starts_R: np.ndarray, ends_R: np.ndarray, positions_R: np.ndarray, k: int, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [P, K] and logarithms of probabilities that sum to 1 at each position, [P, K + 1], of many rows at once; NaN at
    positions of which nothing is known.

    data, starts_R, positions_R: as in `decode_draws`. ends_R: where each row ends.
    """
    values_R = positions_R * k
    gap_PK = _unpack(data, starts_R, values_R, np.zeros(int(values_R.sum()), bool)).reshape(-1, k)
    rank_PK = np.cumsum(gap_PK + 1, axis=1) - 1
    if len(rank_PK) and rank_PK.max() >= len(vocabulary.id_of):
        raise CacheFormatError("a rank beyond the vocabulary")
    sizes_R = positions_R * (k + 1)
    steps_PB = data[_ranges(ends_R - sizes_R, sizes_R)].reshape(-1, k + 1)
    log_p_PB = steps_PB / np.float32(-STEPS_PER_NAT)
    log_p_PB -= np.log(np.exp(log_p_PB).sum(1, keepdims=True))
    log_p_PB[(steps_PB == LAST_STEP).all(1)] = np.nan
    return vocabulary.id_of[rank_PK].astype(np.int64), log_p_PB


def _gaps(rank_M: np.ndarray, place_M: np.ndarray) -> np.ndarray:
    """Ranks, sorted inside each place -> how many ranks lie between each and the one before it; the first: below it."""
    gap_M = np.diff(rank_M, prepend=-1) - 1
    first_M = np.diff(place_M, prepend=-1) != 0
    gap_M[first_M] = rank_M[first_M]
    return gap_M


def _ranks(gap_M: np.ndarray, size_P: np.ndarray) -> np.ndarray:
    """The inverse of `_gaps`, for places of these sizes."""
    rank_M = np.cumsum(gap_M + 1)
    before_P = np.concatenate([[0], rank_M])[np.cumsum(size_P) - size_P]
    return rank_M - np.repeat(before_P, size_P) - 1


def _interleaved(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Counts:
    """Both kinds of each position together."""
    sizes_P = parts[0][0] + parts[1][0]
    starts_P = np.cumsum(sizes_P) - sizes_P
    ids_M, counts_M = (np.empty(int(sizes_P.sum()), np.int64) for _ in range(2))
    for size_P, ids, counts in parts:
        places = _ranges(starts_P, size_P)
        ids_M[places], counts_M[places] = ids, counts
        starts_P = starts_P + size_P
    return Counts(sizes_P, ids_M, counts_M)


@lru_cache
def _table(widths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest value of each class, and the bits that follow it."""
    sizes = 1 << np.array(widths, np.int64)
    return np.cumsum(sizes) - sizes, np.array(widths, np.int64)


def _pack(values: np.ndarray, is_count: np.ndarray) -> bytes:
    """Classes as nibbles, then the bits that follow them."""
    classes, rest, widths = (np.empty(len(values), np.int64) for _ in range(3))
    for kind, table in ((False, GAP_WIDTHS), (True, COUNT_WIDTHS)):
        of_kind = is_count == kind
        base, width = _table(table)
        found = np.searchsorted(base, values[of_kind], side="right") - 1
        classes[of_kind], widths[of_kind], rest[of_kind] = found, width[found], values[of_kind] - base[found]
    assert (rest < 1 << widths).all(), "a value beyond the last class"
    nibbles = np.append(classes, 0)[: len(classes) + len(classes) % 2].astype(np.uint8)
    bit_of = _ranges(np.zeros(len(widths), np.int64), widths)
    bits = (np.repeat(rest, widths) >> bit_of) & 1
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes() + np.packbits(
        bits.astype(np.uint8), bitorder="little"
    ).tobytes()


def _unpack(data: np.ndarray, at_R: np.ndarray, values_R: np.ndarray, is_count: np.ndarray) -> np.ndarray:
    """The inverse of `_pack` for rows that begin at `at_R` and have `values_R` values."""
    _inside(data, at_R + (values_R + 1) // 2)
    nibble = _ranges(2 * at_R, values_R)
    classes = (data[nibble >> 1] >> ((nibble & 1) << 2).astype(np.uint8)) & 15
    # One table for both kinds: counts after gaps.
    classes = classes + (is_count.astype(np.uint8) << 4)
    tables = zip(_table(GAP_WIDTHS), _table(COUNT_WIDTHS), strict=True)
    base, width = (np.concatenate(pair) for pair in tables)
    widths = width[classes]
    ends = np.cumsum(widths)
    first_R = np.cumsum(values_R) - values_R
    before_R = np.concatenate([[0], ends])[first_R]
    bits_at_R = 8 * (at_R + (values_R + 1) // 2)
    bit = ends - widths + np.repeat(bits_at_R - before_R, values_R)
    if len(bit):
        _inside(data, (bit + widths + 7) >> 3)
    # Four bytes from any place on as one number.
    words = np.ndarray((len(data) - 3,), "<u4", data, strides=(1,))
    rest = (words[bit >> 3] >> (bit & 7).astype(np.uint32)).astype(np.int64) & ((1 << widths) - 1)
    return base[classes] + rest


def _inside(data: np.ndarray, ends: np.ndarray) -> None:
    if len(ends) and ends.max() > len(data) - PAD:
        raise CacheFormatError("a row beyond the end of its data")


def _per_row(values_P: np.ndarray, row_ends: np.ndarray) -> np.ndarray:
    """Sums over the positions of each row."""
    total = np.concatenate([[0], np.cumsum(values_P, dtype=np.int64)])
    return total[row_ends[1:]] - total[row_ends[:-1]]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
