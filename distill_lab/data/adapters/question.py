"""Question rows: `{"question" or "problem"}` with an optional gold `answer` and reasoning `cot`; also Vicuna's `turns`.

Instead of `cot`, R1-style rows have `message_thinking` and `message_content`: the completion, with separate thinking. With
several `turns`, the first is the prompt, because the others refer to a missing answer; all turns stay in meta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_lab.data.adapters import _row
from distill_lab.types import Record

QUESTION = ("question", "problem")
ANSWER = ("answer", "true_answer", "gold_answer", "gtruth_answer")
FIELDS = (*QUESTION, *ANSWER, "cot", "message_content", "message_thinking", "turns")


def matches(row: Mapping[str, Any]) -> bool:
    """Whether the row has a question, problem or list of turns."""
    return _has_turns(row) or any(isinstance(row.get(field), str) for field in QUESTION)


def record(row: Mapping[str, Any], id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    used = [_row.filled(row, *QUESTION), _row.filled(row, *ANSWER), "cot"]
    if used[0] is None and _has_turns(row):
        question = row["turns"][0]
        used += ["turns"] if len(row["turns"]) == 1 else []
    else:
        question = _row.text(row, used[0] or "question")
    completion = None
    if row.get("cot") is not None:
        completion = [_row.assistant(_row.text(row, "cot"))]
    elif row.get("message_content") is not None:
        thinking = _row.optional_text(row, "message_thinking")
        completion = [_row.assistant(_row.text(row, "message_content"), thinking)]
        used += ["message_content", "message_thinking"]
    prompt = [{"role": "user", "content": question}]
    answer = _row.gold_answer(row, *ANSWER)
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer)


def _has_turns(row: Mapping[str, Any]) -> bool:
    turns = row.get("turns")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)
