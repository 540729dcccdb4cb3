"""Hold out test prompts that training never sees: prompts.jsonl -> a seeded sample of its rows.

sample_test(data, test, num_rows=100)       test.jsonl: at most a tenth of the rows

`contamination` removes from the training prompts what overlaps with the test.
"""

from __future__ import annotations

import random
from pathlib import Path

from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.types import Counts

MAX_TEST_FRACTION = 0.1
"""Largest fraction of rows held out for the test set."""


def sample_test(data: Path, path: Path, *, num_rows: int, seed: int = 0) -> Counts:
    """Write `num_rows` rows of `data` (at most a tenth of them) to `path`, sampled with `seed`, in their order."""
    total = sum(1 for _ in read_jsonl(data))
    chosen = set(random.Random(seed).sample(range(total), min(num_rows, int(MAX_TEST_FRACTION * total))))
    write_jsonl(path, (row for number, row in enumerate(read_jsonl(data)) if number in chosen))
    return Counts(total, len(chosen), {"left for training": total - len(chosen)})
