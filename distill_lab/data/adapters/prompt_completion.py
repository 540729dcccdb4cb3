"""TRL rows: `{"prompt", "completion"}` (or "response"), each a text or a list of `{"role", "content"}` turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_lab.data.adapters import _row
from distill_lab.data.adapters.messages import conversation
from distill_lab.types import Message, Record

FIELDS = ("prompt", "completion", "response", "answer")


def matches(row: Mapping[str, Any]) -> bool:
    """Whether the row has a prompt."""
    return isinstance(row.get("prompt"), (str, list))


def record(row: Mapping[str, Any], id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    name = "completion" if row.get("completion") is not None else "response"
    if row.get("prompt") is None:
        raise ValueError("field 'prompt' is missing")
    prompt = _messages(row, "prompt", role="user")
    completion = None if row.get(name) is None else _messages(row, name, role="assistant")
    if completion is not None and (not completion or completion[0]["role"] != "assistant"):
        raise ValueError(f"field {name!r} does not start with an assistant turn")
    answer = _row.gold_answer(row, "answer")
    return _row.record(row, id, used=("prompt", name, "answer"), prompt=prompt, completion=completion, answer=answer)


def _messages(row: Mapping[str, Any], field: str, *, role: str) -> list[Message]:
    if isinstance(row[field], list):
        return conversation(row[field], field)
    return [_row.turn(role, _row.text(row, field))]
