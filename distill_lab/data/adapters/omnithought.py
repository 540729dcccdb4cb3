"""OmniThought rows: `{"question", "reasoning": [traces]}`, or flat rows with `rv_score`/`cd_score` or EasyDistill's scores.

The completion is the row's best trace (chosen by `distill_lab.data.traces.best`). All traces stay in meta, under `traces`,
so that `select_traces` can filter them.
"""

from __future__ import annotations

from distill_lab.data import traces
from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = (*traces.QUESTION, *traces.ANSWER, *traces.SCORES, "reasoning")


def matches(row: Fields) -> bool:
    """Whether the row has a question with traces, or an instruction, an answer and a score."""
    nested = isinstance(row.get("reasoning"), list) and isinstance(row.get("question"), str)
    return nested or (
        None not in traces.answer_fields(row) and any(row.get(name) is not None for name in traces.SCORES)
    )


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    question, found = traces.read_traces(row)
    best = traces.best(found)
    used: set[str | None] = {"reasoning", "question"}
    answer = None
    if not isinstance(row.get("reasoning"), list):
        used = {*traces.answer_fields(row), *traces.SCORES}
        answer = None if "answer" in used else _row.gold_answer(row, "answer")
        used.add("answer")
        given = row.get("input")
        if "instruction" in row and isinstance(given, str) and "input" not in used:
            question = "\n\n".join(part for part in (question, given) if part.strip())
            used.add("input")
    kept = _row.record(
        row,
        id,
        used=used,
        prompt=[{"role": "user", "content": question}],
        completion=None if best is None else [best.message()],
        answer=answer,
    )
    kept.prompt.meta[traces.META] = [trace.to_json() for trace in found]
    return kept
