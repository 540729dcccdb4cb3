"""Chat rows: `{"messages": [{"role", "content"}, ...]}`, the format of OpenAI, TRL and this lab's own prompts files.

Content is text or typed parts (text, reasoning, tool_call). Thinking comes from a turn's `thinking` or `reasoning_content`,
or, for the last answer, from those fields of the row. An optional `completion` list follows the messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_lab.data.adapters import _row
from distill_lab.types import Message, Record

FIELDS = ("messages", "completion", "answer", "meta", "thinking", "reasoning_content")


def matches(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of messages."""
    return isinstance(row.get("messages"), list)


def record(row: Mapping[str, Any], id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    messages = conversation(row.get("messages"), "messages")
    prompt, completion = _row.split(messages)
    if row.get("completion") is not None:
        prompt, completion = messages, conversation(row["completion"], "completion")
        if not completion or completion[0]["role"] != "assistant":
            raise ValueError("field 'completion' does not start with an assistant turn")
    thinking = _row.optional_text(row, "thinking", "reasoning_content")
    if thinking:
        if not completion or completion[-1]["role"] != "assistant":
            raise ValueError("the row has thinking, but no answer for it")
        completion[-1].setdefault("thinking", thinking)
    meta = row.get("meta") if row.get("meta") is not None else {}
    if not isinstance(meta, dict):
        raise ValueError(f"field 'meta' is {type(meta).__name__}, expected an object")
    rest = meta | {field: value for field, value in row.items() if field not in FIELDS}
    answer = _row.gold_answer(row, "answer")
    return _row.record(rest, id, used=(), prompt=prompt, completion=completion, answer=answer)


def conversation(items: Any, field: str) -> list[Message]:
    """A list of `{"role", "content"}` turns as messages. Raises ValueError naming the field."""
    return [_turn(item) for item in _row.turns(items, field)]


def _turn(item: dict[str, Any]) -> Message:
    thinking = _row.optional_text(item, "thinking", "reasoning_content")
    return _row.turn(item.get("role"), item.get("content"), thinking=thinking, tool_calls=item.get("tool_calls"))
