"""How good a model is: prompts and its completions, graded -> eval/<model>.jsonl with every item, and a Score.

    score = evaluate(run.path("test.jsonl"), run.path("test.student.jsonl"), run.path("eval/student.jsonl"), "exact")

Each line of the file: `{"id", "sample", "prompt": [messages], "output", "thinking", "answer" (gold), "finish_reason",
"num_tokens", "grade": {"score", "answer", "status"}}`. Nothing is left out: a prompt without a completion is in the
file with score 0 and `finish_reason` "missing".
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import BAD_GOLD, MISSING, EvalRow, read_eval_rows
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.statistics import is_binary, score_interval
from distill_lab.files.jsonl import read_jsonl
from distill_lab.grading.grade import NUM_NAMED, Answers, Graded, OnNote, OnProgress, no_note, write_resumable
from distill_lab.grading.graders import Grader, load_grader
from distill_lab.types import JsonObject


@dataclass(frozen=True, slots=True)
class Score:
    """What a model reached on a set of prompts."""

    n: int
    """Prompts, every one of them counted."""
    score: float
    """Mean grade in [0, 1]; where every grade is 0 or 1 that is the accuracy."""
    ci95: Interval
    """95% interval of `score` over prompts: Clopper and Pearson's for 0/1 grades, Gaffke's otherwise (`intervals`)."""
    mean_tokens: float
    """Generated tokens per completion, thinking included; missing completions are not in the mean."""
    truncated: int
    """Completions cut at the token limit; they score 0."""
    unparseable: int
    """Completions that ended but held no answer the grader could read; they score 0."""
    missing: int
    """Completions that are absent or failed; they score 0."""
    timeouts: int = 0
    """Completions over which the grader was stopped at its time limit; they score 0."""
    cut_share: float = 0.0
    """`truncated` over all completions, in [0, 1]; see `cut_answers`."""
    correct: int | None = None
    """Prompts with grade 1, if every grade is 0 or 1."""
    bad_gold: int = 0
    """Prompts whose gold answer the grader cannot read. They are in the file, but in none of the other figures."""
    bad_gold_ids: tuple[str, ...] = ()
    """The first of those prompts."""

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return dataclasses.asdict(self)


def evaluate(
    prompts: Path,
    completions: Path,
    path: Path,
    grader: str | Grader,
    *,
    paid: Sequence[Path] = (),
    on_note: OnNote = no_note,
    on_progress: OnProgress | None = None,
) -> Score:
    """Grade `completions` of `prompts`, write every item to `path` (atomically), and return the Score.

    The gold answer is the prompt's own; where it has none, the completion that came with the data is the reference.
    With several samples per prompt a prompt's score is the mean over its samples, and prompts stay the unit. `grader`
    is a name (NAME:ARGUMENT for some) or a grader; paid, on_note: as for `grade.grade`. A stop in the middle loses nothing:
    the same call goes on.
    Raises UserError for an unknown grader, no prompts, a prompt without an answer, completions of other prompts, and
    DataError for malformed or double rows.
    """
    grader = load_grader(grader) if isinstance(grader, str) else grader
    answers = Answers(prompts, completions)

    def rows(skip: int) -> Iterator[JsonObject]:
        return (_eval_row(graded).to_json() for graded in answers.graded(grader, skip=skip, missing=True))

    total = answers.num_prompts * answers.num_samples
    with answers.asking(grader, path, paid, on_note):
        write_resumable(path, ["eval", grader.name, prompts, completions], rows, total=total, on_progress=on_progress)
    return read_score(path)


def _eval_row(graded: Graded) -> EvalRow:
    prompt, completion = graded.prompt, graded.completion
    return EvalRow(
        id=prompt.id,
        sample=graded.sample,
        prompt=prompt.messages,
        output=completion.content if completion else "",
        thinking=completion.thinking if completion else None,
        answer=prompt.answer,
        finish_reason=completion.finish_reason if completion else MISSING,
        num_tokens=completion.num_tokens if completion else 0,
        grade=graded.grade,
    )


def cut_share(completions: Path) -> float:
    """Share of the completions in a file that the token limit cut; 0 if it has none."""
    reasons = Counter(row["finish_reason"] for row in read_jsonl(completions))
    return reasons["length"] / max(reasons.total(), 1)


def read_score(path: Path) -> Score:
    """The Score of an eval file. Raises UserError if it holds none."""
    totals: dict[str, tuple[float, int]] = {}
    reasons, statuses, num_tokens = Counter[str](), Counter[str](), 0
    bad: dict[str, None] = {}
    for row in read_eval_rows(path):
        if row.grade.status == BAD_GOLD:
            bad[row.id] = None
            continue
        total, number = totals.get(row.id, (0.0, 0))
        totals[row.id] = total + row.score, number + 1
        reasons[row.finish_reason] += 1
        if row.finish_reason in ("stop", "length"):
            num_tokens += row.num_tokens
        if row.finish_reason == "stop":
            statuses[row.grade.status] += 1
    for name in bad:
        totals.pop(name, None)  # its samples that are missing have another status
    if not totals:
        why = f"no gold answer that the grader can read (first: {next(iter(bad))})" if bad else "no items in it"
        raise UserError(f"{path}: {why}; evaluate the model again{' with another --grader' if bad else ''}")
    scores = [total / number for total, number in totals.values()]
    return Score(
        n=len(scores),
        score=sum(scores) / len(scores),
        ci95=score_interval(scores),
        mean_tokens=num_tokens / max(reasons["stop"] + reasons["length"], 1),
        truncated=reasons["length"],
        unparseable=statuses["unparseable"],
        missing=reasons[MISSING] + reasons["error"],
        timeouts=statuses["timeout"],
        cut_share=reasons["length"] / reasons.total(),
        correct=round(sum(scores)) if is_binary(scores) else None,
        bad_gold=len(bad),
        bad_gold_ids=tuple(bad)[:NUM_NAMED],
    )
