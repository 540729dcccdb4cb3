r"""MATH rows (Hendrycks et al. 2021): `{"problem" or "question", "solution", "level", "type"}`.

The solution is the completion; the gold answer is `answer` if the row has one, otherwise the solution's last `\boxed{...}`.
"""

from __future__ import annotations

from distill_lab.answers import last_box
from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

QUESTION = ("problem", "question")
FIELDS = (*QUESTION, "solution", "answer")


def matches(row: Fields) -> bool:
    """Whether the row has a problem and its solution."""
    return _row.filled(row, *QUESTION) is not None and _row.filled(row, "solution") is not None


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field = _row.filled(row, *QUESTION) or "problem"
    prompt = [{"role": "user", "content": _row.text(row, field)}]
    solution = _row.text(row, "solution")
    box = last_box(solution)
    answer = _row.gold_answer(row, "answer") or (box[1] if box else None)
    return _row.record(
        row, id, used=(field, "solution", "answer"), prompt=prompt, completion=[_row.assistant(solution)], answer=answer
    )
