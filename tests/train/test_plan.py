"""train/plan.py: epochs and steps, and the same rows in a step on any number of processes."""

from __future__ import annotations

from typing import Any

import pytest

from distill_lab.config import TrainConfig
from distill_lab.train.plan import make_plan, micro_batches


def test_the_plan_follows_epochs_and_steps() -> None:
    lengths = [50] * 64
    config = TrainConfig(tokens_per_batch=400, gradient_accumulation_steps=3)
    one = make_plan(lengths, config)
    assert (len(one.batches), one.num_steps, one.batches_per_epoch) == (8, 3, 8)
    assert one.tokens_until.tolist() == [0, 1200, 2400, 3200]
    more = make_plan(lengths, config.model_copy(update={"num_epochs": 2.5}))
    assert (len(more.batches), more.num_steps) == (20, 7)
    assert more.batches[:8] == one.batches
    assert more.batches[8:16] != one.batches
    exact = make_plan(lengths, config.model_copy(update={"max_steps": 10}))
    assert (len(exact.batches), exact.num_steps) == (30, 10)


@pytest.mark.parametrize("accumulation", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("pack_rows", [True, False])
def test_a_step_has_the_same_rows_on_any_number_of_processes(accumulation: int, pack_rows: bool) -> None:
    lengths = [20 + 37 * index % 180 for index in range(150)]
    config = TrainConfig(tokens_per_batch=1000, gradient_accumulation_steps=accumulation, num_epochs=1.7)
    alone = make_plan(lengths, config, pack_rows=pack_rows)
    assert alone.num_steps > 1

    def rows_of_steps(plan: Any, processes: int) -> list[list[int]]:
        each = micro_batches(config, processes) * processes
        steps = [plan.batches[first : first + each] for first in range(0, len(plan.batches), each)]
        return [sorted(row for batch in step for bin_ in batch for row in bin_) for step in steps]

    for processes in (2, 3, 8):
        plan = make_plan(lengths, config, pack_rows=pack_rows, num_processes=processes)
        assert plan.num_steps == alone.num_steps
        assert plan.tokens_until.tolist() == alone.tokens_until.tolist()
        assert plan.batches_per_epoch == alone.batches_per_epoch
        # Every process takes equally many to a step, the last one included.
        assert len(plan.batches) % processes == 0
        assert rows_of_steps(plan, processes) == rows_of_steps(alone, 1)
        tokens = [sum(lengths[row] for bin_ in batch for row in bin_) for batch in plan.batches]
        assert max(tokens) <= 1000
        if accumulation % processes == 0 and alone.num_steps * accumulation == len(alone.batches):
            assert plan.batches == alone.batches
        if not pack_rows:
            assert all(len(bin_) == 1 for batch in plan.batches for bin_ in batch)
