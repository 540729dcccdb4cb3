"""Chat rows: `{"messages": [{"role", "content"}, ...]}`, the format of OpenAI, TRL and this lab's own prompts files.

Content is text or typed parts (text, reasoning, tool_call). Thinking comes from a turn's `thinking`, `reasoning_content` or
`reasoning`, or, for the last answer, from those fields of the row. An optional `completion` list follows the messages. A
turn with `weight: 0` or `train: false` is not trained.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, JsonObject, Message, Record

FIELDS = ("messages", "completion", "answer", "meta", *_row.THINKING)


def matches(row: Fields) -> bool:
    """Whether the row has a list of messages."""
    return isinstance(row.get("messages"), list)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    messages = conversation(row.get("messages"), "messages")
    prompt, completion = _row.split(messages)
    if row.get("completion") is not None:
        prompt, completion = messages, conversation(row["completion"], "completion")
        if not completion or completion[0]["role"] != "assistant":
            raise ValueError("field 'completion' does not start with an assistant turn")
    thinking, read = _row.thinking_of(row)
    if thinking:
        if not completion or completion[-1]["role"] != "assistant":
            raise ValueError("the row has thinking, but no answer for it")
        completion[-1].setdefault("thinking", thinking)
    meta = row.get("meta") if row.get("meta") is not None else {}
    if not isinstance(meta, dict):
        raise ValueError(f"field 'meta' is {type(meta).__name__}, expected an object")
    answer = _row.gold_answer(row, "answer")
    return _row.record(
        row,
        id,
        used=(*FIELDS[:4], *read),
        prompt=prompt,
        completion=completion,
        answer=answer,
        conversation=True,
        meta=meta,
    )


def conversation(items: object, field: str) -> list[Message]:
    """A list of `{"role", "content"}` turns as messages. Raises ValueError naming the field."""
    return [_turn(item) for item in _row.turns(items, field)]


def _turn(item: JsonObject) -> Message:
    return _row.turn(item, role=item.get("role"), content=item.get("content"))
