"""ShareGPT rows: `{"conversations": [{"from", "value"}, ...]}` (or `conversation`, `dialogue`), with a preferred answer.

function_call turns become assistant turns, observation turns become tool turns. The prompt ends before the first answer,
and the rest is the completion; if a row ends with a question and has `chosen`, that is its completion. Turns may also be
`{"role", "content"}`, or pairs `{"human", "assistant"}`.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, JsonObject, Message, Record

TURNS = ("conversations", "conversation", "dialogue")
PAIR = (("human", "user"), ("assistant", "gpt"))
FIELDS = (*TURNS, "chosen", "rejected", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has a list of conversations."""
    return _field(row) is not None


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field = _field(row) or TURNS[0]
    messages = [message for item in _row.turns(row.get(field), field) for message in _turns(item)]
    used = [field, "answer"]
    prompt, completion = _row.split(messages)
    chosen = row.get("chosen")
    if completion is None and isinstance(chosen, dict):
        used += ["chosen", "rejected"]
        completion = _turns(chosen)
        if completion[0]["role"] != "assistant":
            raise ValueError("field 'chosen' is not an assistant turn")
    elif completion is None and isinstance(chosen, str):
        used += ["chosen", "rejected"]
        completion = [_row.assistant(chosen)]
    answer = _row.gold_answer(row, "answer")
    meta = {"rejected": row["rejected"]} if "rejected" in used and row.get("rejected") is not None else {}
    return _row.record(
        row, id, used=used, prompt=prompt, completion=completion, answer=answer, conversation=True, meta=meta
    )


def _field(row: Fields) -> str | None:
    return next((field for field in TURNS if isinstance(row.get(field), list)), None)


def _turns(item: JsonObject) -> list[Message]:
    """One turn, or the two of a pair."""
    user, answer = ([text for name in names if isinstance(text := item.get(name), str)] for names in PAIR)
    if user and answer and "role" not in item and "from" not in item:
        return [{"role": "user", "content": user[0]}, _row.assistant(answer[0])]
    role, content = _row.first(item, "from", "role"), _row.first(item, "value", "content")
    return [_row.turn(item, role=role, content=content)]
