"""Texts to label: `{"sentence"}` with an optional gold `label` (or `answer`), or `{"text", "label"}`; lines of a .txt file.

A row with `text` but no label does not match: it may be a page of a corpus, which asks nothing.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

TEXT = ("sentence", "text")
LABEL = ("label", "answer")
FIELDS = (*TEXT, *LABEL)


def matches(row: Fields) -> bool:
    """Whether the row has a sentence, or a text with a label."""
    labeled = any(isinstance(row.get(field), (str, int, float)) for field in LABEL)
    return isinstance(row.get("sentence"), str) or (labeled and isinstance(row.get("text"), str))


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    used = [_row.filled(row, *TEXT), _row.filled(row, *LABEL)]
    prompt = [{"role": "user", "content": _row.text(row, used[0] or TEXT[0])}]
    return _row.record(row, id, used=used, prompt=prompt, answer=_row.gold_answer(row, *LABEL))
