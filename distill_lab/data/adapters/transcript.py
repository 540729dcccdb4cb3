"""A conversation in one text: `{"text": "### Human: ... ### Assistant: ..."}`, `Human: ...`, ChatML, or `Q: ... A: ...`.

Text before the first mark is the system message; an instruction and its input are one user turn.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row, _transcript
from distill_lab.types import Fields, Record

FIELDS = ("text", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has a text that is a conversation."""
    text = row.get("text")
    if not isinstance(text, str) or not any(
        mark in text for mark in ("###", "uman:", "ser:", "SER:", "<|im_start|>", "\nA:")
    ):
        return False
    try:
        return _transcript.turns(text) is not None
    except ValueError:
        return True  # record says why


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    found = _transcript.turns(_row.text(row, "text"))
    if found is None:
        raise ValueError("field 'text' is not a conversation (### Human: ... ### Assistant: ...)")
    prompt, completion = _row.split(found)
    answer = _row.gold_answer(row, "answer")
    return _row.record(row, id, used=FIELDS, prompt=prompt, completion=completion, answer=answer, conversation=True)
