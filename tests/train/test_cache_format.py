"""The bytes of a teacher cache: what was encoded comes back, for any row; damaged bytes are refused, never misread."""

from __future__ import annotations

import numpy as np
import pytest

from distill_lab.train.cache_format import (
    COUNT_WIDTHS,
    GAP_WIDTHS,
    MAX_DRAWS,
    PAD,
    STEPS_PER_NAT,
    CacheFormatError,
    Counts,
    Vocabulary,
    decode_draws,
    decode_top_k,
    encode_draws,
    encode_top_k,
)

V = 151_936


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of_ranks(np.random.default_rng(0).permutation(V).astype(np.int32))


def a_row(random: np.random.Generator, vocabulary: Vocabulary, *, positions: int, most: int) -> Counts:
    """Distinct ids of any rank, the frequent ones more often, with counts of any size."""
    sizes, ids, counts = [], [], []
    for _ in range(positions):
        size = int(random.choice([0, 1, 2, most // 4, most]))
        ranks = np.unique(np.minimum(random.zipf(1.2, size), V).astype(np.int64) - 1) if size else np.zeros(0, np.int64)
        if random.random() < 0.1:
            ranks = np.unique(np.append(ranks, [0, V - 1]))
        sizes.append(len(ranks))
        ids.append(random.permutation(vocabulary.id_of[ranks]))
        counts.append(random.choice([1, 1, 2, 3, 9, 10, 50, MAX_DRAWS], len(ranks)))
    return Counts(
        np.array(sizes, np.int64), np.concatenate(ids).astype(np.int64), np.concatenate(counts).astype(np.int64)
    )


def sorted_entries(counts: Counts) -> list[tuple[int, int, int]]:
    places = np.repeat(np.arange(len(counts.sizes_P)), counts.sizes_P)
    return sorted(zip(places.tolist(), counts.ids_M.tolist(), counts.counts_M.tolist(), strict=True))


def laid_out(blobs: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends = np.cumsum([len(blob) for blob in blobs])
    return np.frombuffer(b"".join(blobs) + bytes(PAD), np.uint8), ends - [len(blob) for blob in blobs], ends


def test_rows_come_back_as_they_were_alone_and_together(vocabulary: Vocabulary) -> None:
    random = np.random.default_rng(1)
    for _ in range(60):
        most = int(random.choice([3, 14, 15, 16, 40, 200]))
        rows = [
            a_row(random, vocabulary, positions=int(random.integers(1, 40)), most=most)
            for _ in range(int(random.integers(1, 9)))
        ]
        rows.insert(int(random.integers(len(rows))), sure(int(random.integers(0, 3))))
        data, starts, _ = laid_out([encode_draws(row, vocabulary) for row in rows])
        found = decode_draws(data, starts, np.array([len(row.sizes_P) for row in rows]), vocabulary)
        parts = [[getattr(row, name) for row in rows] for name in ("sizes_P", "ids_M", "counts_M")]
        whole = Counts(*map(np.concatenate, parts))
        assert sorted_entries(found) == sorted_entries(whole)
        assert (found.sizes_P == whole.sizes_P).all()


def sure(positions: int) -> Counts:
    """A row at whose positions nothing but the label was drawn."""
    return Counts(np.zeros(positions, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_every_value_at_the_edge_of_a_class_comes_back(vocabulary: Vocabulary) -> None:
    """Ranks 0 and V - 1, and every gap and count around the first value of each class."""
    bases = np.cumsum([0, *(1 << np.array(GAP_WIDTHS))])[:-1]
    for rank in sorted(
        {rank for base in bases.tolist() for rank in (base - 1, base, base + 1) if 0 <= rank < V} | {V - 1}
    ):
        for count in (1, 2, *range(8, 14), MAX_DRAWS):
            row = Counts(np.array([1]), vocabulary.id_of[[rank]].astype(np.int64), np.array([count]))
            data, starts, _ = laid_out([encode_draws(row, vocabulary)])
            assert sorted_entries(decode_draws(data, starts, np.array([1]), vocabulary)) == sorted_entries(row)
    assert sum(1 << width for width in COUNT_WIDTHS) > MAX_DRAWS
    assert sum(1 << width for width in GAP_WIDTHS) > 1_000_000


def test_what_the_reader_knows_costs_nothing(vocabulary: Vocabulary) -> None:
    """A position whose draws are all the label is one byte; a frequent id drawn once beside it half a byte more."""
    assert len(encode_draws(sure(100), vocabulary)) == 100
    frequent = Counts(np.ones(100, np.int64), np.full(100, vocabulary.id_of[0], np.int64), np.ones(100, np.int64))
    assert len(encode_draws(frequent, vocabulary)) == 150


def test_top_k_comes_back_within_half_a_step(vocabulary: Vocabulary) -> None:
    random = np.random.default_rng(2)
    for k, sizes in ((1, [3]), (16, [5, 0, 9]), (40, [2, 1])):
        rows, blobs = [], []
        for size in sizes:
            logits = random.normal(0, 3, (size, k + 1))
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            ids = np.array([random.choice(V, k, replace=False) for _ in range(size)], np.int64).reshape(size, k)
            rows.append((ids, log_p))
            blobs.append(encode_top_k(ids, log_p, vocabulary))
        data, starts, ends = laid_out(blobs)
        found_ids, found = decode_top_k(data, starts, ends, np.array(sizes), k, vocabulary)
        ids, log_p = np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])
        for place in range(len(ids)):
            by_id = dict(zip(found_ids[place].tolist(), found[place].tolist(), strict=False))
            assert by_id.keys() == set(ids[place].tolist())
            wanted = np.array([*log_p[place, :-1], log_p[place, -1]])
            given = np.array([*(by_id[id] for id in ids[place].tolist()), found[place, -1]])
            # Half a step, and what makes the sum 1 again.
            near = wanted > -15
            assert np.abs(given - wanted)[near].max(initial=0) < 1 / STEPS_PER_NAT
        np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)


def test_damaged_bytes_are_refused_or_are_another_row_but_never_lead_outside(vocabulary: Vocabulary) -> None:
    random = np.random.default_rng(3)
    blob = encode_draws(a_row(random, vocabulary, positions=30, most=20), vocabulary)
    refused = 0
    for _ in range(300):
        damaged = bytearray(blob)
        for place in random.integers(0, len(blob), 3):
            damaged[place] = random.integers(256)
        cut = bytes(damaged)[: int(random.integers(1, len(blob) + 1))]
        data, starts, _ = laid_out([cut])
        try:
            found = decode_draws(data, starts, np.array([30]), vocabulary)
            assert len(found.sizes_P) == 30
            assert found.ids_M.max(initial=0) < V
        except (CacheFormatError, IndexError):
            refused += 1
    assert refused > 50
