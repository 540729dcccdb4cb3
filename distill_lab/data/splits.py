"""Hold out test prompts that training never sees: prompts.jsonl -> a seeded sample, and everything except the sample.

sample_test(data, test, num_rows=100)       test.jsonl: at most a tenth of the rows
exclude_test(data, test, prompts)           prompts.jsonl: the rows whose conversation is not in the test set
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def exclude_test(data: Path, test: Path, path: Path) -> Counts:
    """Write the rows of `data` to `path`, except those whose messages are also in `test`."""
    tested = {_key(row) for row in read_jsonl(test)}
    rows_in = 0

    def kept() -> Iterator[Mapping[str, Any]]:
        nonlocal rows_in
        for row in read_jsonl(data):
            rows_in += 1
            if _key(row) not in tested:
                yield row

    num_kept = write_jsonl(path, kept())
    return Counts(rows_in, num_kept, {"stands in the test": rows_in - num_kept})


def _key(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(row["messages"], sort_keys=True).encode()).digest()
