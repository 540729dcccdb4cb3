"""OpenR1-Math rows: `{"problem", "generations": [...], "correctness_math_verify": [...], "answer"}`.

The completion is a generation that was verified, or one that nothing verified; never one that failed. All generations stay
in meta, under `traces`, so that `select_traces` can filter and count them. The short `solution` is not trained.
"""

from __future__ import annotations

from distill_lab.data import traces
from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

QUESTION = ("problem", "question", "prompt")
FIELDS = (*QUESTION, "generations", *traces.VERDICTS, traces.COMPLETE, "solution", "answer", "messages")


def matches(row: Fields) -> bool:
    """Whether the row has a question and a list of generations."""
    field = _row.filled(row, *QUESTION)
    return field is not None and isinstance(row[field], str) and isinstance(row.get("generations"), list)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    field = _row.filled(row, *QUESTION) or QUESTION[0]
    found = traces.read_generations(row)
    best = traces.best(found)
    used = {field, "generations", *traces.VERDICTS, traces.COMPLETE, "answer"}
    # The row's own conversation is one of the generations again.
    used |= {"messages"} if isinstance(row.get("messages"), list) else set()
    prompt = [{"role": "user", "content": _row.text(row, field)}]
    completion = None if best is None else [best.message()]
    meta = {traces.META: [trace.to_json() for trace in found]}
    answer = _row.gold_answer(row, "answer")
    return _row.record(row, id, used=used, prompt=prompt, completion=completion, answer=answer, meta=meta)
