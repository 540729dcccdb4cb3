"""DistilQwen_100k and EasyDistill files: `{"instruction", "output"}` (or "response"; with neither, only a prompt)."""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = ("instruction", "output", "response", "cot", "history", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has an instruction."""
    return isinstance(row.get("instruction"), str)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    return _row.instruction(row, id, fields=FIELDS)
