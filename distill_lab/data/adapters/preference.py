"""Preference rows: `{"prompt", "chosen", "rejected"}`: the chosen answer is the completion, the rejected one stays in meta.

The prompt may also be called question, query or instruction (with its input), or be the first turns of `chosen` itself, as
a list of turns or as a text `Human: ... Assistant: ...`.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row, _transcript
from distill_lab.data.adapters.messages import conversation
from distill_lab.types import Fields, Message, Record

PROMPT = ("prompt", "question", "query", "instruction")
FIELDS = (*PROMPT, "input", "chosen", "rejected", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has a chosen answer, and is not a conversation that another adapter reads."""
    other = any(isinstance(row.get(field), list) for field in ("conversations", "conversation", "dialogue"))
    return _row.is_filled(row.get("chosen")) and isinstance(row["chosen"], (str, list, dict)) and not other


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field, chosen = _row.filled(row, *PROMPT), row.get("chosen")
    used = [field, "chosen", "rejected", "answer"]
    prompt: list[Message] = []
    if field is not None and isinstance(row[field], list):
        prompt = conversation(row[field], field)
    elif field is not None:
        parts = [_row.text(row, field)]
        if field == "instruction":
            used.append("input")
            parts.append(_row.optional_text(row, "input") or "")
        prompt = [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]
    turns = _chosen(chosen, alone=field is None)
    if prompt and turns[: len(prompt)] == prompt:
        completion = turns[len(prompt) :]
    elif prompt and turns[0]["role"] == "assistant":
        completion = turns
    else:  # the turns have the prompt in them; the last one is what was chosen
        prompt, completion = turns[:-1], turns[-1:]
    if not completion or completion[0]["role"] != "assistant":
        raise ValueError("field 'chosen' has no assistant turn after the prompt")
    answer = _row.gold_answer(row, "answer")
    meta = {"rejected": row["rejected"]} if row.get("rejected") is not None else {}
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer, meta=meta)


def _chosen(value: object, *, alone: bool) -> list[Message]:
    """The chosen answer as turns; alone: without a prompt field, it has to have the prompt in it."""
    if isinstance(value, str):
        turns = _transcript.turns(value) if alone else None
        if alone and turns is None:
            raise ValueError("the row has no prompt, and 'chosen' is not a conversation")
        return turns or [_row.assistant(value)]
    items = _row.turns([value] if isinstance(value, dict) else value, "chosen")
    if not items:
        raise ValueError("field 'chosen' is empty")
    return [
        _row.turn(item, role=_row.first(item, "role", "from"), content=_row.first(item, "content", "value"))
        for item in items
    ]
