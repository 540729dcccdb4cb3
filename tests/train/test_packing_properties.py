"""Properties of packing, on any rows: nothing lost, nothing twice, each label where its row put it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_lab.chat import Encoded
from distill_lab.train.packing import Row, collate, epoch_batches, pack, split_batch

pytestmark = pytest.mark.slow

FAST = settings(max_examples=150, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row of tokens that are all its own, so that a mixed-up one is noticed."""
    length, first = draw(st.integers(2, 12)), draw(st.integers(0, 10**6))
    mask = [False, *draw(st.lists(st.booleans(), min_size=length - 2, max_size=length - 2)), True]
    return Row.from_encoded(Encoded([100 * first + place for place in range(length)], mask))


@FAST
@given(LENGTHS, st.integers(0, 60))
def test_bins_hold_every_row_once(lengths: list[int], more: int) -> None:
    width = max(lengths) + more
    bins = pack(lengths, width)
    assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in bin_) <= width for bin_ in bins)
    # No two bins could be one.
    fills = sorted(sum(lengths[index] for index in bin_) for bin_ in bins)
    assert len(fills) == 1 or fills[0] + fills[1] > width


@FAST
@given(LENGTHS, st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_every_row_once_and_is_the_same_again(
    lengths: list[int], tokens: int, seed: int, epoch: int, pack_rows: bool
) -> None:
    def batches() -> list[list[list[int]]]:
        return epoch_batches(
            lengths, tokens_per_batch=tokens, width=max(lengths), seed=seed, epoch=epoch, pack_rows=pack_rows
        )

    found = batches()
    assert sorted(index for batch in found for bin_ in batch for index in bin_) == list(range(len(lengths)))
    assert all(batch and all(batch) for batch in found)
    assert found == batches()


@FAST
@given(st.lists(st.lists(rows(), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans(), st.integers(1, 20))
def test_a_batch_holds_the_tokens_and_labels_of_its_rows(bins: list[list[Row]], flat: bool, parts: int) -> None:
    for batch in (bins, *split_batch(bins, parts)):
        found = collate(batch, flat=flat)
        in_order = [row for bin_ in batch for row in bin_]
        labels = np.concatenate([row.target[row.loss_mask] for row in in_order])
        assert found.labels_N.tolist() == labels.tolist()
        assert found.row_ids_R == tuple(row.id for row in in_order)
        # The token at a loss position is the one before its label.
        at = found.input_ids_BW.reshape(-1)[found.loss_positions_N]
        assert at.tolist() == (labels - 1).tolist()
        positions = found.position_ids_BW.reshape(-1)[found.loss_positions_N].tolist()
        assert positions == [int(place) for row in in_order for place in np.flatnonzero(row.loss_mask)]
        if flat:
            assert found.cu_seqlens_R1 is not None
            assert found.cu_seqlens_R1.tolist() == np.cumsum([0, *(len(row) for row in in_order)]).tolist()
    split = [row.id for batch in split_batch(bins, parts) for bin_ in batch for row in bin_]
    assert sorted(split) == sorted(row.id for bin_ in bins for row in bin_)
