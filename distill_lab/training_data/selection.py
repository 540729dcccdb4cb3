"""What a student is to learn from graded completions: the correct ones, few and short enough, on one side of a split.

    write_correct(prompts, graded, Path("correct.parquet"))                      every correct solution, once
    select(Path("correct.parquet"), Path("selected.parquet"), keep="shortest", budget=0.5)
    take_side(Path("selected.parquet"), validation, Path("train.parquet"), side="training")

A row of these Parquet files is a training row and what is known of it: `id, sample, question, prompt [messages],
completion [messages], answer (gold), num_tokens, level, type`. `distill train` reads them as they are, and so does pandas.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, cast

import numpy as np

from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError, NoData
from distill_lab.files.jsonl import atomic_path, read_jsonl
from distill_lab.files.parquet import read_parquet
from distill_lab.generation.cut_answers import CUT
from distill_lab.training_data.training_set import DUPLICATE, EMPTY, ERROR
from distill_lab.types import Completion, Counts, Fields, Grade, Message, Prompt

Keep = Literal["all", "shortest"] | int
"""How many solutions of a question stay: all, the shortest one, or the first N."""
BudgetBy = Literal["all", "level", "type", "question"]

WRONG, UNREADABLE, TIMED_OUT = "wrong", "no readable answer", "the grader timed out"
NO_GOLD = "no readable gold answer"
OVER_BUDGET, ENOUGH = "over the token budget", "enough of this question"
BATCH_ROWS = 1024


class SelectionRow(TypedDict):
    """A row of a selection's file."""

    id: str
    sample: int
    question: str
    prompt: list[Message]
    completion: list[Message]
    answer: str | None
    num_tokens: int
    level: str | None
    type: str | None


class Size(NamedTuple):
    """What a selection knows of a solution besides its text."""

    id: str
    """The question's."""
    num_tokens: int
    level: str | None
    type: str | None


def write_correct(prompts: Path, graded: Path, path: Path, *, min_score: float = 1.0) -> Counts:
    """Write the completions that were graded correct to `path` (.parquet), each text of a question once.

    min_score: in (0, 1], the grade from which a completion is correct. Two texts that differ in white space only are one;
    the first stays. Left out, by reason: cut, failed, empty, unreadable, timed out, wrong, duplicate. The rows are in
    the order of `graded`, which must be that of `prompts` (grading/grade.py writes it so). Raises DataError for a row
    that is not graded or not of these prompts.
    """
    dropped: Counter[str] = Counter()

    def rows() -> Iterator[SelectionRow]:
        asked = read_prompts(prompts)
        prompt: Prompt | None = None
        seen = set[str]()
        for number, row in enumerate(read_jsonl(graded), start=1):
            if "grade" not in row:
                raise DataError(str(graded), number, "this completion has no grade; run distill grade on it first")
            while prompt is None or prompt.id != row["id"]:
                prompt, seen = next(asked, None), set[str]()
                if prompt is None:
                    reason = f"{row['id']!r} is not among the prompts that follow in {prompts}; grade them again"
                    raise DataError(str(graded), number, reason)
            answer, grade = Completion.from_json(row), Grade(**row["grade"])
            text = json.dumps([" ".join(part.split()) for part in (answer.thinking or "", answer.content)])
            reason = _why_not(answer, grade, min_score) or (DUPLICATE if text in seen else None)
            if reason:
                dropped[reason] += 1
                continue
            seen.add(text)
            yield _row(prompt, answer)

    kept = write_parquet(path, rows())
    return Counts(kept + dropped.total(), kept, dict(dropped))


def _why_not(answer: Completion, grade: Grade, min_score: float) -> str | None:
    if answer.finish_reason != "stop":
        return CUT if answer.finish_reason == "length" else ERROR
    if grade.status != "ok":
        return {"timeout": TIMED_OUT, "bad_gold": NO_GOLD}.get(grade.status, UNREADABLE)
    if grade.score < min_score:
        return WRONG
    return None if answer.content.strip() else EMPTY


def _row(prompt: Prompt, answer: Completion) -> SelectionRow:
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.thinking:
        message["thinking"] = answer.thinking
    level, kind = (prompt.meta.get(name) for name in ("level", "type"))
    return {
        "id": prompt.id,
        "sample": answer.sample,
        "question": prompt.messages[-1]["content"],
        "prompt": prompt.messages,
        "completion": [message],
        "answer": prompt.answer,
        "num_tokens": answer.num_tokens,
        "level": None if level is None else str(level),
        "type": None if kind is None else str(kind),
    }


def select(
    correct: Path, path: Path, *, keep: Keep = "all", budget: float = 1.0, budget_by: BudgetBy = "all"
) -> Counts:
    """Write the rows of `correct` that fit the token budget, and of each question as many as `keep` says, to `path`.

    budget: a quantile in (0, 1] of the solutions' tokens; what is longer is left out (0.5: longer than the median; 1:
    nothing). budget_by: whether the quantile is that of all solutions or of those of the same level, type or question, so
    that hard questions keep their shorter solutions too. "shortest" and numbers prefer, among equals, the earlier sample.
    """
    rows = _sizes(correct)
    limits = token_limits(rows, budget=budget, budget_by=budget_by)
    fitting: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.num_tokens <= limits[_group(row, budget_by)]:
            fitting[row.id].append(index)
    most = 1 if keep == "shortest" else len(rows) if keep == "all" else keep
    kept = set[int]()
    for indices in fitting.values():
        ordered = sorted(indices, key=lambda i: rows[i].num_tokens) if keep == "shortest" else indices
        kept.update(ordered[:most])
    write_parquet(path, (row for index, row in enumerate(read_selection(correct)) if index in kept))
    num_fitting = sum(map(len, fitting.values()))
    return Counts(len(rows), len(kept), {OVER_BUDGET: len(rows) - num_fitting, ENOUGH: num_fitting - len(kept)})


def token_limits(rows: Sequence[Size], *, budget: float, budget_by: BudgetBy) -> dict[str, float]:
    """Group ("" for all, else a level, type or question's id) -> maximum tokens of a solution: at 0.5 the median."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        groups[_group(row, budget_by)].append(row.num_tokens)
    return {name: float(np.quantile(tokens, budget)) for name, tokens in groups.items()}


def _group(row: Size, budget_by: BudgetBy) -> str:
    return {"all": "", "question": row.id, "level": row.level, "type": row.type}[budget_by] or ""


def take_side(rows: Path, validation: Path, path: Path, *, side: Literal["training", "validation"]) -> Counts:
    """Write the rows whose question is in `validation` (prompts.jsonl), or those whose does not, to `path`."""
    held_out = {_key(prompt.messages) for prompt in read_prompts(validation)}
    num_rows = 0

    def wanted() -> Iterator[SelectionRow]:
        nonlocal num_rows
        for row in read_selection(rows):
            num_rows += 1
            if (_key(row["prompt"]) in held_out) == (side == "validation"):
                yield row

    kept = write_parquet(path, wanted())
    other = "for validation" if side == "training" else "for training"
    return Counts(num_rows, kept, {other: num_rows - kept})


def shuffle_answers(rows: Path, path: Path, *, seed: int = 0) -> Counts:
    """Write the rows of `rows` with their solutions moved to wrong questions, as a control: no question has its own.

    Questions and solutions stay the same, so that whatever a student gains from them is not how to solve the questions.
    Raises NoData if one question has half of the rows or more: there is nowhere to move them.
    """
    groups: dict[str, list[SelectionRow]] = defaultdict(list)
    for row in read_selection(rows):
        groups[_key(row["prompt"])].append(row)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    flat = [row for name in order for row in groups[name]]
    # Moved on by the size of the largest group, a solution has left its own question whichever group it is in.
    step = max(map(len, groups.values()), default=0)
    if len(flat) < 2 * step:
        raise NoData(f"{rows}: too few questions to shuffle the answers between; give more data")
    moved = [*flat[step:], *flat[:step]]
    kept = write_parquet(
        path,
        (
            row | {"completion": other["completion"], "num_tokens": other["num_tokens"]}
            for row, other in zip(flat, moved, strict=True)
        ),
    )
    return Counts(kept, kept)


def read_selection(path: Path) -> Iterator[SelectionRow]:
    """The rows of a selection, one batch in memory; fields that a message lacks are not in it."""
    for row in read_parquet(path):
        for field in ("prompt", "completion"):
            row[field] = [{name: text for name, text in turn.items() if text is not None} for turn in row[field]]
        yield cast("SelectionRow", row)


def write_parquet(path: Path, rows: Iterable[Fields]) -> int:
    """Write a selection's rows, atomically; returns how many."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    messages = pa.list_(pa.struct([("role", text), ("content", text), ("thinking", text)]))
    kinds = {"sample": pa.int64(), "num_tokens": pa.int64(), "prompt": messages, "completion": messages}
    names = ("id", "sample", "question", "prompt", "completion", "answer", "num_tokens", "level", "type")
    schema = pa.schema([(name, kinds.get(name, text)) for name in names])
    number, left = 0, iter(rows)
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(left, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            number += len(batch)
    return number


def _sizes(path: Path) -> list[Size]:
    from pyarrow import parquet

    return [Size(**row) for row in parquet.read_table(path, columns=list(Size._fields)).to_pylist()]


def _key(messages: list[Message]) -> str:
    return json.dumps(messages, sort_keys=True, ensure_ascii=False)
