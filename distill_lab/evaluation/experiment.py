"""The result of an experiment, as experiment.json: variants with what they reached, differences, and what follows.

    write_result(Path("runs/experiments/a/experiment.json"), result)
    read_result(Path("runs/experiments/a/experiment.json")).conclusion

The sweep (`pipeline/experiments/`) fills it; pages and the terminal read it and compute nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.ratings import RatingSummary
from distill_lab.files.jsonl import write_json
from distill_lab.grading.graders import Metric

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What one model reached on a set of prompts."""

    n: int
    """Prompts."""
    score: float
    """Mean grade in [0, 1], with several trainings the mean over them."""
    ci95: Interval
    mean_tokens: float
    """Generated tokens per answer."""
    cut_share: float
    """Share of the answers that the token limit cut."""
    several_steps: float | None = None
    """Share of the answers that reason in several steps, in [0, 1]."""
    several_steps_ci95: Interval | None = None
    num_steps: float | None = None
    """Steps per answer before the final answer, at most `variants.MAX_STEPS` counted."""
    num_steps_ci95: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPrompts:
    """A variant's models on one set of prompts."""

    prompts: str
    """Name of the set."""
    metric: Metric
    models: dict[str, Reached]
    """By name: "teacher" (if it was graded), "base", "student"."""
    by_seed: tuple[float, ...]
    """The student's score in each training."""
    overlap: int = 0
    """Prompts of the set that overlap with the training prompts."""
    instruction: str = ""
    """What follows every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherWork:
    """What the teacher wrote for the training set."""

    answers: int
    tokens: int
    """Generated."""
    seconds: float
    """Spent by this experiment; answers that an earlier run or variant paid for take none."""
    seconds_alone: float | None
    """What generating them all takes at the measured speed in batches; None if no speed was measured."""
    cost: float | None
    """Paid to a server, in the currency of the prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCounts:
    """Kinds of failures among a variant's answers to one set of prompts; an answer may be of several kinds."""

    prompts: str
    answers: int
    """Answers that were looked at: all of the set but those whose gold answer cannot be read."""
    failed: int
    """Answers that failed."""
    kinds: dict[str, int]
    """Kind -> number of failed answers."""
    judged_by: str
    """`rules`, or the judge's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """One variant."""

    name: str
    value: float | None
    about: str
    """The settings that are its own."""
    runs: tuple[str, ...]
    """Run directories, from the folder of all experiments; one for each seed."""
    rows: int
    """Training rows, of the first seed as all below."""
    steps: int
    """Optimizer steps."""
    train_seconds: float
    losses: tuple[float, float] | None
    """Validation loss before and after training, nats per token."""
    teacher: TeacherWork | None
    """None if the data set's own answers were used."""
    num_parameters: int | None
    tokens_per_s: float | None
    """The student's, in batches."""
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_tokens: int | None
    on: tuple[OnPrompts, ...]
    failures: tuple[FailureCounts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two variants, or a student and its base, on the same prompts."""

    first: str
    second: str
    prompts: str
    measure: str
    """What differs: score, share of answers in several steps."""
    value: float
    """Second minus first, in [-1, 1]."""
    ci95: Interval
    p_value: float
    test: str
    n: int
    found: bool
    """The interval excludes 0, and the p-value is below 0.05 / number of comparisons (Bonferroni)."""
    similarity: bool
    """The measure is likeness to a reference text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in an example."""

    label: str
    text: str
    score: float
    note: str = ""
    """Kinds of failure, or how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt that says something, chosen by a rule."""

    prompts: str
    id: str
    why: str
    """The rule that chose it."""
    question: str
    gold: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """All of an experiment."""

    version: int = VERSION
    name: str
    title: str
    question: str
    axis: str
    ordered: bool
    shows: tuple[str, ...]
    preset: str
    setup: tuple[str, ...]
    """Sentences on models, data and settings."""
    seeds: int
    variants: tuple[VariantResult, ...]
    differences: tuple[Difference, ...]
    conclusion: tuple[str, ...]
    """Sentences that follow from the differences and their intervals."""
    next_steps: tuple[str, ...]
    notes: tuple[str, ...]
    """What limits the result."""
    examples: tuple[Example, ...]
    answers: dict[str, dict[str, str]]
    """Set of prompts -> variant, or "teacher" and "base" if they are the same for all -> its eval file, from the folder of
    the experiment."""
    ratings: dict[str, RatingSummary] = field(default_factory=dict)
    """Set of prompts -> what a person's ratings say; see `distill rate`."""
    definition: dict[str, str] = field(default_factory=dict)
    """Each variant and set of prompts -> a digest of its settings: what another call may add to, but not replace."""


def write_result(path: Path, result: ExperimentResult) -> None:
    """Write experiment.json, atomically."""
    write_json(path, dataclasses.asdict(result))


def read_result(path: Path) -> ExperimentResult:
    """What `write_result` wrote. Raises UserError, naming the file, if it is missing, of another version or damaged."""
    from pydantic import TypeAdapter, ValidationError

    again = "give the command of the experiment again (what is finished is skipped)"
    if not path.is_file():
        raise UserError(f"{path} is missing; {again}")
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        version = row.get("version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the result of an experiment ({error}); {again}") from None
    if version != VERSION:
        raise UserError(f"{path} is of another version ({version}, this one is {VERSION}); {again}")
    try:
        return TypeAdapter(ExperimentResult).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not the result of an experiment ({where}: {first['msg']}); {again}") from None
