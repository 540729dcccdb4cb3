"""Rows of a Parquet file that the lab wrote, one batch in memory; damage is named with the row it begins at.

    for row in read_parquet(Path("train.parquet")): ...

Data sets of others are read by `data/_tables.py`, which also converts their types.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_lab.errors import DataError
from distill_lab.formatting import one_line

BATCH_ROWS = 1024


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as Python values. Raises DataError if the file is damaged, cut off, or something else than Parquet."""
    from pyarrow import ArrowException
    from pyarrow import parquet as arrow

    number = 0
    try:
        with arrow.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield row
    except (ArrowException, OSError, OverflowError, ValueError) as error:  # Arrow reports damage as any of these
        where = f"row {number + 1} and the rest of the file" if number else "the file"
        cause = one_line(error)
        raise DataError(
            str(path), None, f"{where} cannot be read as Parquet ({cause}); make it again, or copy it again"
        ) from None
