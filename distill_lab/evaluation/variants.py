"""Figures of an experiment's variants: eval files -> what a model reached, and how two of them differ, with intervals.

    reached(path, steps=True)                                          Reached(n=500, score=0.93, ...)
    difference("500 rows", values(a), "2,000 rows", values(b), ...)      Difference(value=0.12, ci95=(0.08, 0.16), ...)
    merge_seeds([first, second], path)                                 trainings as samples of the same prompts

Several trainings of a variant are samples of each prompt: a prompt counts with the mean of its grades, and prompts are the
unit of every interval. Such an interval holds for these trainings; the scores of each are given beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import BAD_GOLD, EvalRow, first_samples, read_eval_rows
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.experiment import Answer, Difference, Example, Reached
from distill_lab.evaluation.intervals import bounded_mean
from distill_lab.evaluation.statistics import paired_scores, score_interval
from distill_lab.evaluation.steps import SEVERAL, num_steps
from distill_lab.files.jsonl import write_jsonl

MAX_STEPS = 10
"""Steps of an answer that count, so that their mean has an interval without an assumed distribution."""
CHANCE = 0.05
SCORE, STEPS = "score", "share of answers in several steps"
MAX_EXAMPLES = 3
"""Of each kind."""


def merge_seeds(files: Sequence[Path], path: Path) -> None:
    """Write the eval rows of several trainings to `path`, each training's as further samples of its prompts."""

    def rows() -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        start = 0
        for file in files:
            read = list(read_eval_rows(file))
            found += [dataclasses.replace(row, sample=start + row.sample).to_json() for row in read]
            start += 1 + max((row.sample for row in read), default=0)
        return found

    write_jsonl(path, rows())


def reached(path: Path, *, steps: bool) -> Reached:
    """What an eval file says of its model. steps: also how many steps its answers take. Raises UserError as `read_score`."""
    score = read_score(path)
    found = Reached(
        n=score.n, score=score.score, ci95=score.ci95, mean_tokens=score.mean_tokens, cut_share=score.cut_share
    )
    if not steps:
        return found
    shares, numbers = list(values(path, STEPS).values()), list(_by_prompt(path, _num_steps).values())
    return dataclasses.replace(
        found,
        several_steps=sum(shares) / len(shares),
        several_steps_ci95=score_interval(shares),
        num_steps=sum(numbers) / len(numbers),
        num_steps_ci95=bounded_mean(numbers, low=0.0, high=float(MAX_STEPS)),
    )


def values(path: Path, measure: str = SCORE) -> dict[str, float]:
    """Prompt -> its mean grade, or the share of its answers that reason in several steps, in [0, 1]."""
    if measure == SCORE:
        return _by_prompt(path, lambda row: row.score)
    return _by_prompt(path, lambda row: float(_num_steps(row) >= SEVERAL))


def _num_steps(row: EvalRow) -> float:
    return float(min(MAX_STEPS, num_steps(row.output, row.thinking))) if row.finish_reason == "stop" else 0.0


def _by_prompt(path: Path, value: Callable[[EvalRow], float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    bad: set[str] = set()
    for row in read_eval_rows(path):
        found.setdefault(row.id, []).append(value(row))
        if row.grade.status == BAD_GOLD:
            bad.add(row.id)
    return {name: sum(each) / len(each) for name, each in found.items() if name not in bad}


def check_same_questions(prompts: str, answers: Mapping[str, tuple[Path, str]]) -> None:
    """Raise UserError unless the variants were asked the same: what has the same id has the same messages and gold answer.

    answers: variant -> its eval file and the instruction after each question, in which variants may differ; they may differ
    in system messages, too.
    """
    known: dict[str, tuple[str, list[object]]] = {}
    for variant, (path, instruction) in answers.items():
        shared = not known
        for row in first_samples(path):
            earlier = [message for message in row.prompt[:-1] if message["role"] != "system"]
            asked: list[object] = [earlier, row.question(instruction), row.answer]
            first, before = known.setdefault(row.id, (variant, asked))
            shared |= first != variant
            if before != asked:
                what = "gold answer" if before[:-1] == asked[:-1] else "question"
                raise UserError(
                    f"the variants {first} and {variant} have another {what} for {row.id} of the prompts {prompts}, so they "
                    "cannot be compared; give all variants the same test data"
                )
        if not shared:
            raise UserError(
                f"{variant} has no prompt of {prompts} in common with the other variants; give all the same test data"
            )


def difference(
    first: tuple[str, Mapping[str, float]],
    second: tuple[str, Mapping[str, float]],
    *,
    prompts: str,
    measure: str,
    similarity: bool,
    comparisons: int,
) -> Difference:
    """The second of two named columns of values minus the first, over the prompts that both have.

    comparisons: how many there are in the experiment; the limit of the p-value is divided by it.
    """
    names = [name for name in first[1] if name in second[1]]
    if not names:
        raise UserError(f"{first[0]} and {second[0]} have no graded prompt of {prompts} in common")
    found = paired_scores(np.array([[first[1][name], second[1][name]] for name in names]))
    low, high = found.ci95
    return Difference(
        first=first[0],
        second=second[0],
        prompts=prompts,
        measure=measure,
        value=found.gain,
        ci95=found.ci95,
        p_value=found.p_value,
        test=found.test,
        n=len(names),
        found=(low > 0 or high < 0) and found.p_value < CHANCE / comparisons,
        similarity=similarity,
    )


def telling_examples(prompts: str, answers: Mapping[str, Path]) -> list[Example]:
    """Prompts whose grades differ most between the first and the last of `answers` (label -> eval file), in both directions.

    If they differ on no prompt: the first ones of the set. Ties are in the order of the set; first samples only.
    """
    rows = {label: {row.id: row for row in read_eval_rows(path) if row.sample == 0} for label, path in answers.items()}
    labels = list(rows)
    first, last = rows[labels[0]], rows[labels[-1]]
    change = {name: last[name].score - first[name].score for name in first if name in last}
    better = sorted((name for name in change if change[name] > 0), key=lambda name: -change[name])[:MAX_EXAMPLES]
    worse = sorted((name for name in change if change[name] < 0), key=lambda name: change[name])[:MAX_EXAMPLES]
    rule = f"graded {{}} for {labels[-1]} than for {labels[0]}"
    chosen = {name: rule.format("higher") for name in better} | {name: rule.format("lower") for name in worse}
    if not chosen:
        chosen = dict.fromkeys(list(change)[:2], "the first of the prompts; the grades differ on none")
    return [
        _example(prompts, name, why, {label: found[name] for label, found in rows.items() if name in found})
        for name, why in chosen.items()
    ]


def _example(prompts: str, name: str, why: str, rows: Mapping[str, EvalRow]) -> Example:
    first = next(iter(rows.values()))
    answers = [Answer(label, row.output, row.score, ending(row)) for label, row in rows.items()]
    return Example(
        prompts=prompts, id=name, why=why, question=first.text, gold=first.answer or "", answers=tuple(answers)
    )


def ending(row: EvalRow) -> str:
    """How an answer ended, if not by itself."""
    return {"length": "cut at the limit", "missing": "no answer", "error": "failed"}.get(row.finish_reason, "")
