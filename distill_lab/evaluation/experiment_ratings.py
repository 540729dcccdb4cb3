"""A person's ratings of an experiment: experiment.json and ratings.jsonl -> what they say, set of prompts by set of prompts.

rate_all(read_result(folder / "experiment.json"), folder)["30 instructions"].models["2,000 rows"]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill_lab.evaluation.experiment import ExperimentResult
from distill_lab.evaluation.ratings import FILE, RatingSummary, judge_name, summarize_ratings


@dataclass(frozen=True)
class RatedAnswers:
    """Answers to one set of prompts."""

    files: dict[str, Path]
    """Label -> eval file."""
    instructions: dict[str, str]
    """Label -> what follows each question."""
    judge: str
    """The judge that graded them; empty: none did."""


def answers_to(result: ExperimentResult, folder: Path, prompts: str) -> RatedAnswers:
    """The answers of an experiment to a set of prompts that it has."""
    on = {variant.name: each for variant in result.variants for each in variant.on if each.prompts == prompts}
    files = {label: folder / path for label, path in result.answers[prompts].items()}
    first = next(iter(on.values()))
    # Teacher and base are among the answers only if all variants ask them alike.
    asked = {label: on.get(label, first).instruction for label in files}
    return RatedAnswers(files, asked, judge_name(first.metric.grader))


def rate_all(result: ExperimentResult, folder: Path) -> dict[str, RatingSummary]:
    """What the ratings in `folder` say; sets of prompts of which nothing is rated are left out."""
    found: dict[str, RatingSummary] = {}
    for prompts in result.answers:
        each = answers_to(result, folder, prompts)
        summary = summarize_ratings(folder / FILE, each.files, judge=each.judge, instructions=each.instructions)
        if summary:
            found[prompts] = summary
    return found
