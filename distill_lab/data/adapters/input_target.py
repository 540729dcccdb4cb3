"""BIG-bench and MAWPS rows: `{"input", "target"}`; the target, text or a number, is the gold answer."""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = ("input", "target")


def matches(row: Fields) -> bool:
    """Whether the row has an input and a target."""
    return isinstance(row.get("input"), str) and isinstance(row.get("target"), (str, int, float))


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    prompt = [{"role": "user", "content": _row.text(row, "input")}]
    return _row.record(row, id, used=FIELDS, prompt=prompt, answer=_row.gold_answer(row, "target"))
