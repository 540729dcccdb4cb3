"""Alpaca rows: `{"instruction", "input", "output"}`; the user turn is the instruction, a blank line and the input.

Uses `history` ([question, answer] pairs) if a row has it.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = ("instruction", "input", "output", "response", "cot", "history", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has an instruction and an input."""
    return isinstance(row.get("instruction"), str) and isinstance(row.get("input"), str)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    return _row.instruction(row, id, fields=FIELDS)
