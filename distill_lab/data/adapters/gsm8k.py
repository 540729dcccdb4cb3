"""GSM8K rows (Cobbe et al. 2021): `{"question", "answer"}`, where the answer's last line is `#### ` and the number.

The number, without thousands separators, is the gold answer; the whole worked answer is the completion.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = ("question", "answer")
MARK = "####"


def matches(row: Fields) -> bool:
    """Whether the row has a question and a worked answer with its mark."""
    answer = row.get("answer")
    return isinstance(row.get("question"), str) and isinstance(answer, str) and MARK in answer


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    worked = _row.text(row, "answer")
    _, mark, number = worked.rpartition(MARK)
    if not (mark and number.strip()):
        raise ValueError(f"field 'answer' does not end with {MARK} and the number")
    prompt = [{"role": "user", "content": _row.text(row, "question")}]
    answer = number.strip().replace(",", "")
    return _row.record(row, id, used=FIELDS, prompt=prompt, completion=[_row.assistant(worked)], answer=answer)
