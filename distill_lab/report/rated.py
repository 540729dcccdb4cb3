"""A person's ratings in results: a run or experiment and its ratings.jsonl -> summary.json or experiment.json, and the page.

rated = find_rated(Path("runs/first"))
publish_ratings(Path("runs/first"), rated)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.experiment import read_result, write_result
from distill_lab.evaluation.experiment_ratings import answers_to, rate_all
from distill_lab.evaluation.ratings import (
    FILE,
    RatingSummary,
    find_answers,
    judge_name,
    summarize_ratings,
)
from distill_lab.evaluation.summary_file import read_summary, write_summary
from distill_lab.report.experiment_page import write_experiment
from distill_lab.report.page import write_report
from distill_lab.report.result_text import NAMES

RUN, EXPERIMENT = "run.json", "experiment.json"


@dataclass(frozen=True)
class Rated:
    """Answers that can be rated."""

    answers: Mapping[str, Path]
    """Label -> eval file."""
    names: Mapping[str, str]
    """Label -> how people call it."""
    judge: str
    """The judge that graded them; empty: none did."""
    instructions: Mapping[str, str] = field(default_factory=dict)
    """Label -> what follows each question and is not shown."""
    prompts: str = ""
    """Of an experiment: the set of prompts."""


def find_rated(folder: Path, *, prompts: str = "") -> Rated:
    """The answers of a run, or of an experiment's variants to one set of prompts. Raises UserError for anything else."""
    if (folder / EXPERIMENT).is_file():
        return _of_experiment(folder, prompts)
    if not (folder / RUN).is_file():
        raise UserError(f"{folder} is neither a run directory nor the folder of an experiment")
    return Rated(find_answers(folder), NAMES, judge_of(folder))


def judge_of(run_dir: Path) -> str:
    """The judge that graded a run; empty if none did."""
    metric = read_summary(run_dir / "summary.json").metric
    return judge_name(metric.grader) if metric else ""


def _of_experiment(folder: Path, prompts: str) -> Rated:
    result = read_result(folder / EXPERIMENT)
    known = list(result.answers)
    name = prompts or known[0]
    if name not in known:
        raise UserError(f"experiment {result.name} has no prompts {prompts!r}; choose from {', '.join(known)}")
    found = answers_to(result, folder, name)
    return Rated(found.files, NAMES, found.judge, found.instructions, name)


def publish_ratings(folder: Path, rated: Rated) -> RatingSummary | None:
    """Write what the ratings say into the result and its page, and return it; None if nothing is rated."""
    if (folder / EXPERIMENT).is_file():
        path = folder / EXPERIMENT
        result = read_result(path)
        ratings = rate_all(result, folder)
        write_result(path, dataclasses.replace(result, ratings=ratings))
        write_experiment(folder)
        return ratings.get(rated.prompts)
    found = summarize_ratings(folder / FILE, rated.answers, judge=rated.judge)
    path = folder / "summary.json"
    write_summary(path, dataclasses.replace(read_summary(path), ratings=found))
    write_report(folder)
    return found
