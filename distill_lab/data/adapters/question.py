"""Question rows: `{"question" or "problem"}` with an optional gold `answer` and an answer to train; also Vicuna's `turns`.

The answer to train is `response` (OpenOrca), `output`, `completion` or the reasoning `cot`; R1-style rows have
`message_thinking` and `message_content`. `thinking` or `reasoning` next to it is its thinking; with neither, it belongs to
the gold answer. With several `turns`, the first is the prompt, because the others refer to a missing answer; all turns stay
in meta. Choices and context are part of the question.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.data.adapters._choices import find_choices
from distill_lab.types import Fields, Message, Record

QUESTION = ("question", "problem")
COMPLETION = ("response", "output", "completion", "message_content", "cot")
THINKING = (*_row.THINKING, "message_thinking")
FIELDS = (*QUESTION, *_row.GOLD, *COMPLETION, *THINKING, "turns")


def matches(row: Fields) -> bool:
    """Whether the row has a question, problem or list of turns."""
    return bool(_turns(row)) or any(_asked(row, field) is not None for field in QUESTION)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field = _row.filled(row, *QUESTION)
    used: list[str | None] = [field]
    inside: Fields = {}
    turns = _turns(row)
    if field is None and turns:
        question = turns[0]
        used += ["turns"] if len(turns) == 1 else []
    else:
        question = _asked(row, field or "question")
        if question is None:
            question = _row.text(row, field or "question")
        asked = row.get(field or "")
        if isinstance(asked, dict):  # ARC's first form: the choices are in the question
            inside = {name: value for name, value in asked.items() if name != "stem"}
    gold = _row.filled(row, *_row.GOLD)
    used.append(gold)
    completion, read = _completion(row, gold)
    used += read
    row = {**inside, **row}
    # With choices, the gold answer is one of them, which `record` finds.
    answer = _row.gold_answer(row, *_row.GOLD) if find_choices(row) is None else None
    prompt: list[Message] = [{"role": "user", "content": question}]
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer)


def _completion(row: Fields, gold: str | None) -> tuple[list[Message] | None, list[str]]:
    """The answer to train, and the fields it is made from."""
    thinking, read = _row.thinking_of(row, "message_thinking")
    name = next((field for field in COMPLETION if row.get(field) is not None), None)
    if name is None and thinking is not None and gold is not None:
        return [_row.assistant(_row.gold_answer(row, gold) or "", thinking)], read
    if name is None:
        return None, []
    return [_row.assistant(_row.text(row, name), thinking)], [name, *read]


def _asked(row: Fields, field: str) -> str | None:
    """The question's text; None if there is none."""
    value = row.get(field)
    if isinstance(value, dict) and isinstance(value.get("stem"), str):
        value = value["stem"]
    return value if isinstance(value, str) else None


def _turns(row: Fields) -> list[str]:
    """The field `turns` if it is a list of texts; empty if not."""
    turns = row.get("turns")
    return turns if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns) else []
