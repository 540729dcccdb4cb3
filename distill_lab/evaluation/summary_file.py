"""What a run reached, as summary.json: Summary and ModelSummary, written and read.

    write_summary(run.path("summary.json"), summary)
    read_summary(Path("runs/demo/summary.json")).kpis["speedup >= 3"].status

`summarize` (summary.py) makes it. Terminal, page and picture read it and compute nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.draft_figures import DraftReport
from distill_lab.evaluation.goals import Kpi
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.labels import LabelSummary
from distill_lab.evaluation.pass_at_k import BestOfK
from distill_lab.evaluation.ratings import RatingSummary
from distill_lab.evaluation.summary_parts import (
    CostComparison,
    Generated,
    Paid,
    RoundSummary,
    TokenHistogram,
    TokenStats,
)
from distill_lab.files.jsonl import write_json
from distill_lab.grading.graders import Metric
from distill_lab.train.agreement import Agreement
from distill_lab.train.rollout_stats import OnPolicyStats
from distill_lab.types import Counts, JsonObject

VERSION = 2
"""Of summary.json; 1 had no version, no intervals of speed, and KPIs that were true or false."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """One model's score on a group of test prompts."""

    score: float
    """In [0, 1]."""
    ci95: Interval


@dataclass(frozen=True, slots=True)
class Group:
    """Test prompts that have something in common."""

    name: str
    n: int
    """Prompts."""
    scores: dict[str, GroupScore]
    """By model."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The test prompts in groups; see `groups.group_scores`."""

    by: str
    """What the groups differ in: level, type, label, prompt characters."""
    groups: tuple[Group, ...]
    without: int
    """Prompts that are in no group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One model's figures; None: not measured. See `Score` and `Speed`, whose names these are."""

    score: float | None = None
    ci95: Interval | None = None
    correct: int | None = None
    cut_share: float | None = None
    truncated: int | None = None
    unparseable: int | None = None
    missing: int | None = None
    timeouts: int | None = None
    bad_gold: int | None = None
    """Prompts left out because the grader cannot read their gold answer."""
    mean_tokens: float | None = None
    median_tokens: float | None = None
    several_steps: float | None = None
    """Share of the answers that reason in several steps, in [0, 1]."""
    several_steps_ci95: Interval | None = None
    several_steps_n: int | None = None
    tokens_per_s: float | None = None
    tokens_per_s_single: float | None = None
    seconds_per_answer: float | None = None
    seconds_per_answer_single: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    latency_p95_ci95: Interval | None = None
    """In seconds."""
    latency_tokens: int | None = None
    num_latencies: int | None = None
    latencies_s: tuple[float, ...] = ()
    """Of each latency answer."""
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    timed_prompts: int | None = None
    timed_max_tokens: int | None = None
    num_parameters: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run reached. None: not measured."""

    version: int = VERSION
    recipe: str
    n: int
    """Prompts behind the scores."""
    models: dict[str, ModelSummary]
    """By name: "teacher", "base", "student"."""
    metric: Metric | None
    """What the scores are."""
    verdict: str
    """One of `evaluation/verdict.py`."""
    result: str
    """A sentence without its full stop."""
    retention: float | None
    """Student score / teacher score."""
    retention_ci95: Interval | None
    base_retention: float | None
    retention_reason: str | None
    """Why retention is not reported though there are scores."""
    goal_score: float | None
    """The score that reaches the retention goal; None if there is no such goal."""
    similarity: float | None
    """Student figure / teacher figure, if the metric is likeness to a reference."""
    base_similarity: float | None
    gain: float | None
    """Student score minus base score, in [-1, 1]."""
    gain_ci95: Interval | None
    p_value: float | None
    """Of `gain`, two-sided."""
    test: str | None
    """The test behind `p_value`."""
    speedup: float | None
    """Teacher's seconds per answer / student's: the smaller of the next two."""
    speedup_ci95: Interval | None
    speedup_batched: float | None
    speedup_batched_ci95: Interval | None
    speedup_single: float | None
    """One prompt at a time."""
    speedup_single_ci95: Interval | None
    speedup_per_token_batched: float | None
    """Student's tokens per second / teacher's."""
    speedup_per_token_batched_ci95: Interval | None
    speedup_per_token_single: float | None
    speedup_per_token_single_ci95: Interval | None
    no_interval: dict[str, str]
    """Figure that has no interval, or is not there -> why."""
    kpis: dict[str, Kpi]
    """Goal -> whether it is met, missed or open. It lacks goals that were not measured, or that nothing follows from."""
    notes: tuple[str, ...]
    """What limits the result."""
    advice: tuple[str, ...]
    """What to try."""
    outcomes: dict[str, int] | None = None
    """Who is right -> number of prompts, for teacher and student."""
    reference: str | None = None
    """Prompt distillation: whose answers are the gold ones, "gold" or "teacher"."""
    test_overlap: Counts | None = None
    """Training prompts, and those left out because they overlap with the test."""
    spending: Paid | None = None
    """What servers were paid: requests, tokens and cost of each stage; None if no server was asked."""
    generated: dict[str, Generated] | None = None
    """By stage that generated; answers from the lab's cache are among them."""
    groups: tuple[Grouping, ...] = ()
    """Scores by level, type, label and length, if the test prompts differ in them."""
    cost: CostComparison | None = None
    """Prompt distillation: what an answer costs."""
    labels: dict[str, LabelSummary] | None = None
    """Prompt distillation: accuracy per label and confusion matrix, by model."""
    tokens: dict[str, dict[str, TokenStats]] | None = None
    """Verified distillation: tokens of the correct solutions; see `token_stats.read_stats`."""
    token_histogram: TokenHistogram | None = None
    token_ratio: float | None = None
    """Mean tokens of student over base student."""
    size_ratio: float | None = None
    """Parameters of teacher over student."""
    best_of_k: BestOfK | None = None
    """Verified distillation: what several samples of the teacher are worth."""
    iterations: tuple[RoundSummary, ...] = ()
    """Verified distillation: the rounds."""
    draft: DraftReport | None = None
    """Draft models: acceptance and wall time of each draft."""
    on_policy: OnPolicyStats | None = None
    """On-policy distillation: rounds, tokens generated, share of truncated rollouts, and own text before and after."""
    agreement: Agreement | None = None
    """Distillation between different tokenizers: on how much of the answers they can be compared."""
    student: str | None = None
    """Verified distillation: the directory of the best round's student."""
    ratings: RatingSummary | None = None
    """What a person's blind ratings say; see `distill rate`."""

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return {**dataclasses.asdict(self), "cost": self.cost.to_json() if self.cost else None}


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json, atomically."""
    write_json(path, summary.to_json())


def read_summary(path: Path) -> Summary:
    """What `write_summary` wrote. Raises UserError, naming the file, if it is missing, of another version or damaged."""
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise UserError(f"{path} is missing, so there is nothing to report; let the run finish first")
    again = "give the command of this run again (finished stages are skipped)"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        version = row.get("version", 1)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the summary of a run ({error}); {again}") from None
    if version != VERSION:
        when = "an earlier" if isinstance(version, int) and version < VERSION else "another"
        raise UserError(f"{path} is of {when} version ({version}, this one is {VERSION}); {again}")
    try:
        return TypeAdapter(Summary).validate_python(row)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not the summary of a run ({where}: {first['msg']}); {again}") from None
