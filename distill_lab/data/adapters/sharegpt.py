"""ShareGPT rows: `{"conversations": [{"from", "value"}, ...]}`, with an optional `system` field and preferred answer.

function_call turns become assistant turns, observation turns become tool turns. The prompt ends before the first answer,
and the rest is the completion; if a row ends with a question and has `chosen`, that is its completion. A system turn in the
conversation takes precedence over the `system` field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_lab.data.adapters import _row
from distill_lab.types import Message, Record

FIELDS = ("conversations", "system", "chosen", "answer")


def matches(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of conversations."""
    return isinstance(row.get("conversations"), list)


def record(row: Mapping[str, Any], id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    messages = [_turn(item) for item in _row.turns(row.get("conversations"), "conversations")]
    used = ["conversations", "answer"]
    system = _row.optional_text(row, "system")
    if system is not None and not any(message["role"] == "system" for message in messages):
        used.append("system")
        messages = [{"role": "system", "content": system}, *messages] if system else messages
    prompt, completion = _row.split(messages)
    if completion is None and isinstance(row.get("chosen"), dict):
        used.append("chosen")
        completion = [_turn(row["chosen"])]
        if completion[0]["role"] != "assistant":
            raise ValueError("field 'chosen' is not an assistant turn")
    answer = _row.gold_answer(row, "answer")
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer)


def _turn(item: dict[str, Any]) -> Message:
    role, content = _row.first(item, "from", "role"), _row.first(item, "value", "content")
    return _row.turn(role, content, tool_calls=item.get("tool_calls"))
