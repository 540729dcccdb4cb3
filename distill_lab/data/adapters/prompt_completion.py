"""Rows of a prompt and its completion: `{"prompt", "completion"}` (TRL), `{"query", "response"}`, `{"input", "output"}`.

Both sides are texts or lists of `{"role", "content"}` turns. Without a completion the row is only a prompt.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.data.adapters.messages import conversation
from distill_lab.types import Fields, Message, Record

PROMPT = ("prompt", "query", "input")
COMPLETION = ("completion", "response", "output")
FIELDS = (*PROMPT, *COMPLETION, "answer", *_row.THINKING)


def matches(row: Fields) -> bool:
    """Whether the row has a prompt, or a query or input with its answer."""
    field = _row.filled(row, *PROMPT)
    if field is None or not isinstance(row[field], (str, list)):
        return False
    return field == "prompt" or _row.filled(row, *COMPLETION) is not None


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field, name = _row.filled(row, *PROMPT), _row.filled(row, *COMPLETION)
    if field is None:
        raise ValueError("field 'prompt' is missing or empty")
    prompt = _messages(row, field, role="user")
    used = [field, "answer"]
    completion = None
    if name is not None or (name := next((each for each in COMPLETION if each in row), None)):
        used.append(name)
        completion = None if row[name] is None else _messages(row, name, role="assistant")
    if completion is not None:
        if not completion or completion[0]["role"] != "assistant":
            raise ValueError(f"field {name!r} does not start with an assistant turn")
        thinking, read = _row.thinking_of(row)
        used += read
        if thinking:
            completion[-1].setdefault("thinking", thinking)
    answer = _row.gold_answer(row, "answer")
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer)


def _messages(row: Fields, field: str, *, role: str) -> list[Message]:
    if isinstance(row[field], list):
        return conversation(row[field], field)
    return [_row.turn({}, role=role, content=_row.text(row, field))]
