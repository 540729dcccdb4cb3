"""The summary of a run: scores and speeds -> a Summary, in which figures have their intervals and goals are judged.

summary = summarize("system1", 500, scores=scores, speeds=speeds, gain=paired(base, student), retention_ci95=(0.9, 0.98))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.goals import Figure, Kpi, judge, smallest
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.speedups import (
    LATENCY_TOKENS,
    NUM_LATENCIES,
    REASONING_TOKENS,
    Speed,
    Speedups,
    latency_95,
    speedups,
)
from distill_lab.evaluation.statistics import Paired
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.verdict import RETENTION_GOAL, decide
from distill_lab.formatting import times
from distill_lab.grading.graders import Metric

if TYPE_CHECKING:
    from distill_lab.evaluation.steps import Steps

SPEEDUP_GOAL = 3.0
STEPS_GOAL = 0.8
"""Share of answers that reason in several steps."""
LATENCY_GOALS_S = {LATENCY_TOKENS: 2.0, REASONING_TOKENS: 3.0}
"""By the tokens of an answer, one at a time: the seconds its 95th percentile has to stay below."""
SPEEDUP_KPI = "speedup >= 3"
STEPS_KPI = ">= 0.8 reason in several steps"


def summarize(
    recipe: str,
    n: int,
    *,
    scores: Mapping[str, Score],
    speeds: Mapping[str, Speed] | None = None,
    gain: Paired | None = None,
    retention_ci95: Interval | None = None,
    steps: Mapping[str, Steps] | None = None,
    metric: Metric | None = None,
    losses: tuple[float, float] | None = None,
    outcomes: Mapping[str, int] | None = None,
) -> Summary:
    """What was reached, per model ("teacher", "base", "student") and between them.

    n: prompts behind the scores. metric: what the scores are, needed if there are any. losses: validation loss before and
    after training. steps: the share of answers that reason in several steps, by model. outcomes: see `Summary.outcomes`.
    What the scores allow to be said is `verdict.decide`'s. A teacher that scores 0 leaves nothing to retain: `retention` is
    None and its KPI is missed.
    """
    speeds, steps = speeds or {}, steps or {}
    names = dict.fromkeys([*scores, *speeds])
    found = decide(
        metric,
        {name: score.score for name, score in scores.items()},
        n=n,
        retention_ci95=retention_ci95,
        p_value=gain.p_value if gain else None,
        losses=losses,
        cut={name: score.cut_share for name, score in scores.items()},
    )
    ratios = speedups(speeds["teacher"], speeds["student"]) if {"teacher", "student"} <= speeds.keys() else None
    both = smallest(ratios.batched, ratios.single) if ratios else Figure(None)
    retained = found.retention is not None
    return Summary(
        recipe=recipe,
        n=n,
        models={name: _model(scores.get(name), speeds.get(name), steps.get(name)) for name in names},
        metric=metric,
        verdict=found.verdict,
        result=found.result,
        retention=found.retention,
        # If retention is not reported, neither is its interval.
        retention_ci95=retention_ci95 if retained else None,
        base_retention=found.base_retention,
        retention_reason=found.retention_reason,
        goal_score=RETENTION_GOAL * scores["teacher"].score if retained else None,
        similarity=found.similarity,
        base_similarity=found.base_similarity,
        gain=gain.gain if gain else None,
        gain_ci95=gain.ci95 if gain else None,
        p_value=gain.p_value if gain else None,
        test=gain.test if gain else None,
        speedup=both.value,
        speedup_ci95=both.ci95,
        speedup_batched=ratios.batched.value if ratios else None,
        speedup_batched_ci95=ratios.batched.ci95 if ratios else None,
        speedup_single=ratios.single.value if ratios else None,
        speedup_single_ci95=ratios.single.ci95 if ratios else None,
        speedup_per_token_batched=ratios.per_token_batched.value if ratios else None,
        speedup_per_token_batched_ci95=ratios.per_token_batched.ci95 if ratios else None,
        speedup_per_token_single=ratios.per_token_single.value if ratios else None,
        speedup_per_token_single_ci95=ratios.per_token_single.ci95 if ratios else None,
        no_interval=_reasons(found.retention, retention_ci95, ratios, both, speeds),
        kpis=found.kpis | _speed_kpis(ratios, both, speeds.get("student")) | _steps_kpi(steps.get("student")),
        notes=(*found.notes, *_terser(ratios)),
        advice=found.advice,
        outcomes=dict(outcomes) if outcomes is not None else None,
    )


def _reasons(
    retention: float | None,
    retention_ci95: Interval | None,
    ratios: Speedups | None,
    both: Figure,
    speeds: Mapping[str, Speed],
) -> dict[str, str]:
    reasons = {"retention": "no interval was computed"} if retention is not None and retention_ci95 is None else {}
    if ratios:
        figures = {"speedup": both, "speedup_batched": ratios.batched, "speedup_single": ratios.single}
        reasons |= {name: figure.why for name, figure in figures.items() if figure.ci95 is None}
    # If there is no percentile at all, `no_p95` says so.
    timed = {name: speed for name, speed in speeds.items() if speed.latency_p95_s is not None}
    latencies = {f"latency_p95_s of {name}": latency_95(speed) for name, speed in timed.items()}
    return reasons | {name: figure.why for name, figure in latencies.items() if figure.ci95 is None}


def _speed_kpis(ratios: Speedups | None, both: Figure, student: Speed | None) -> dict[str, Kpi]:
    kpis = {}
    if ratios:
        kpis[SPEEDUP_KPI] = _speedup_kpi(ratios, both)
    if student and student.latency_p95_s is not None:
        goal, figure = LATENCY_GOALS_S[student.latency_tokens], latency_95(student)
        kpis[latency_kpi(student.latency_tokens)] = judge(
            figure, goal, unit="seconds", n=student.num_latencies, counted="latency answers", at_least=False
        )
    return kpis


def _speedup_kpi(ratios: Speedups, both: Figure) -> Kpi:
    """The goal for the slower way. If it is open: what would settle the way that is open and needs most."""
    ways = [
        judge(ratios.batched, SPEEDUP_GOAL, unit="ratio", n=ratios.num_rounds, counted="rounds of timing"),
        judge(ratios.single, SPEEDUP_GOAL, unit="ratio", n=ratios.num_prompts_single, counted="prompts timed alone"),
    ]
    whole = judge(both, SPEEDUP_GOAL, unit="ratio", n=ways[0].n, counted=ways[0].counted)
    if "missed" in (way.status for way in ways):
        return dataclasses.replace(whole, status="missed", to_settle=None, why="")
    waits = [way for way in ways if way.status == "open"]
    if not waits:
        return whole
    hardest = max(waits, key=lambda way: (way.to_settle is None, (way.to_settle or 0) / way.n))
    return dataclasses.replace(
        whole, n=hardest.n, counted=hardest.counted, to_settle=hardest.to_settle, why=hardest.why
    )


def _steps_kpi(steps: Steps | None) -> dict[str, Kpi]:
    if steps is None:
        return {}
    figure = Figure(steps.share, steps.ci95, "no prompt takes several steps")
    return {STEPS_KPI: judge(figure, STEPS_GOAL, unit="share", n=steps.n, counted="test prompts")}


def _terser(ratios: Speedups | None) -> list[str]:
    """A note if the speedup goal is reached only because the student writes fewer tokens."""
    if ratios is None:
        return []
    answer = min(ratios.batched.value or 0.0, ratios.single.value or 0.0)
    token = min(ratios.per_token_batched.value or 0.0, ratios.per_token_single.value or 0.0)
    if answer < SPEEDUP_GOAL or token >= SPEEDUP_GOAL:
        return []
    shorter = "a part of the speedup per answer comes from shorter answers"
    return [f"Per token the student is {times(token)} as fast as the teacher: {shorter}."]


def latency_kpi(num_tokens: int) -> str:
    """The name of the goal for answers of `num_tokens`, a key of LATENCY_GOALS_S."""
    return f"p95 < {LATENCY_GOALS_S[num_tokens]:g} s per {num_tokens} tokens"


def ran_on(models: Mapping[str, ModelSummary]) -> str:
    """What the models of a summary were timed with, as in `transformers, bfloat16, NVIDIA A10G, 24 GB`; may be empty."""
    timed = [models[name] for name in ("teacher", "student") if name in models and models[name].device]
    if not timed:
        return ""
    first, dtypes = timed[0], list(dict.fromkeys(str(model.dtype) for model in timed))
    text = f"{first.engine}, {' and '.join(dtypes)}, {first.device}"
    return f"{text}; batches of {first.timed_prompts}, answers of at most {first.timed_max_tokens} tokens"


def no_p95(model: ModelSummary) -> str:
    """Why a model that was timed has no 95th percentile of its latency; empty if it has one."""
    if model.latency_p50_s is None or model.latency_p95_s is not None:
        return ""
    return f"no 95th percentile from {model.num_latencies} answers; it takes {NUM_LATENCIES}"


def latency_tokens(models: Mapping[str, ModelSummary]) -> int:
    """The tokens of the latency answers behind a summary's `models`; the usual ones if no model was timed."""
    return next((model.latency_tokens for model in models.values() if model.latency_tokens), LATENCY_TOKENS)


def _model(score: Score | None, speed: Speed | None, steps: Steps | None) -> ModelSummary:
    found = {name: getattr(score, name) for name in _OF_SCORE} if score else {}
    if speed:
        found |= {name: getattr(speed, name) for name in _OF_SPEED}
        found |= {"timed_prompts": speed.num_prompts, "timed_max_tokens": speed.max_tokens}
        found["latency_p95_ci95"] = latency_95(speed).ci95
    if steps:
        found |= {"several_steps": steps.share, "several_steps_ci95": steps.ci95, "several_steps_n": steps.n}
    mean_tokens = score.mean_tokens if score else speed.mean_tokens if speed else None
    return ModelSummary(**found, mean_tokens=mean_tokens)


_OF_SCORE = ("score", "ci95", "correct", "cut_share", "truncated", "unparseable", "missing", "timeouts", "bad_gold")
_OF_SPEED = (
    *("tokens_per_s", "tokens_per_s_single", "seconds_per_answer", "seconds_per_answer_single", "engine", "device"),
    *("dtype", "num_latencies", "latencies_s", "latency_p50_s", "latency_p95_s", "latency_tokens", "num_parameters"),
    "peak_memory_bytes",
)
