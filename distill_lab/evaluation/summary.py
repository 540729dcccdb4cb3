"""The summary of a run: scores and speeds -> summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.speed import LATENCY_TOKENS, NUM_LATENCIES, REASONING_TOKENS
from distill_lab.evaluation.statistics import Paired
from distill_lab.evaluation.verdict import decide

if TYPE_CHECKING:
    from distill_lab.evaluation.speed import Speed
    from distill_lab.evaluation.steps import Steps
    from distill_lab.grading.graders import Metric

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
    retention_ci95: tuple[float, float] | None = None,
    steps: Mapping[str, Steps] | None = None,
    metric: Metric | None = None,
    losses: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """summary.json: what was reached, per model ("teacher", "base", "student") and between them.

    n: prompts behind the scores. metric: what the scores are, needed where there are any. losses: validation loss before
    and after training. steps: where reasoning was looked at, a model has `several_steps`, the share, and
    `several_steps_n`, the prompts behind it. What was not measured is null, and a KPI that was not measured, or that
    nothing follows from, is left out of `kpis`. What the scores allow to be said is `verdict.decide`'s. A teacher that
    scores 0 leaves nothing to retain: `retention` is null and its KPI is not met.
    """
    speeds = speeds or {}
    models = {name: _model_summary(scores.get(name), speeds.get(name)) for name in dict.fromkeys([*scores, *speeds])}
    p_value = gain.p_value if gain else None
    found = decide(
        metric,
        {name: score.score for name, score in scores.items()},
        n=n,
        p_value=p_value,
        losses=losses,
        cut={name: score.cut_share for name, score in scores.items()},
    )
    kpis: dict[str, bool] = found.pop("kpis")
    summary: dict[str, Any] = {"recipe": recipe, "n": n, "models": models, **found}
    for name, found in (steps or {}).items():
        models[name] |= {"several_steps": found.share, "several_steps_n": found.n}

    batched = single = None
    per_token: dict[str, float | None] = {"batched": None, "single": None}
    if "teacher" in speeds and "student" in speeds:
        teacher, student = speeds["teacher"], speeds["student"]
        batched = teacher.seconds_per_answer / student.seconds_per_answer
        single = teacher.seconds_per_answer_single / student.seconds_per_answer_single
        per_token = {
            "batched": student.tokens_per_s / teacher.tokens_per_s,
            "single": student.tokens_per_s_single / teacher.tokens_per_s_single,
        }
        kpis[SPEEDUP_KPI] = min(batched, single) >= SPEEDUP_GOAL
    if "student" in speeds:
        student = speeds["student"]
        if student.latency_p95_s is not None:
            kpis[latency_kpi(student.latency_tokens)] = student.latency_p95_s < LATENCY_GOALS_S[student.latency_tokens]
    if steps and "student" in steps:
        kpis[STEPS_KPI] = steps["student"].share >= STEPS_GOAL

    return summary | {
        "speedup_batched": batched,
        "speedup_single": single,
        "speedup": min(batched, single) if batched is not None and single is not None else None,
        "speedup_per_token_batched": per_token["batched"],
        "speedup_per_token_single": per_token["single"],
        # Where retention is not reported, neither is its interval.
        "retention_ci95": list(retention_ci95) if retention_ci95 and summary["retention"] is not None else None,
        "gain": gain.gain if gain else None,
        "gain_ci95": list(gain.ci95) if gain else None,
        "p_value": p_value,
        "test": gain.test if gain else None,
        "kpis": kpis,
    }


def latency_kpi(num_tokens: int) -> str:
    """The name of the goal for answers of so many tokens; they are a key of LATENCY_GOALS_S."""
    return f"p95 < {LATENCY_GOALS_S[num_tokens]:g} s per {num_tokens} tokens"


def ran_on(models: Mapping[str, Mapping[str, Any]]) -> str:
    """What the models of a summary were timed with, as in `transformers, bfloat16, NVIDIA A10G, 24 GB`; may be empty."""
    timed = [models[name] for name in ("teacher", "student") if models.get(name, {}).get("device")]
    if not timed:
        return ""
    dtypes = list(dict.fromkeys(model["dtype"] for model in timed))
    text = f"{timed[0]['engine']}, {' and '.join(dtypes)}, {timed[0]['device']}"
    prompts, tokens = timed[0]["timed_prompts"], timed[0]["timed_max_tokens"]
    return f"{text}; batches of {prompts}, answers of at most {tokens} tokens"


def no_p95(model: Mapping[str, Any]) -> str:
    """Why a model that was timed has no 95th percentile of its latency; empty where it has one."""
    if model.get("latency_p50_s") is None or model.get("latency_p95_s") is not None:
        return ""
    return f"no 95th percentile from {model.get('num_latencies')} answers; it takes {NUM_LATENCIES}"


def latency_tokens(models: Mapping[str, Mapping[str, Any]]) -> int:
    """The tokens of the latency answers behind a summary's `models`; the usual ones where none was timed."""
    return next((number for model in models.values() if (number := model.get("latency_tokens"))), LATENCY_TOKENS)


def _model_summary(score: Score | None, speed: Speed | None) -> dict[str, Any]:
    return {
        "score": score.score if score else None,
        "ci95": list(score.ci95) if score else None,
        "cut_share": score.cut_share if score else None,
        "truncated": score.truncated if score else None,
        "unparseable": score.unparseable if score else None,
        "missing": score.missing if score else None,
        "timeouts": score.timeouts if score else None,
        "tokens_per_s": speed.tokens_per_s if speed else None,
        "tokens_per_s_single": speed.tokens_per_s_single if speed else None,
        "seconds_per_answer": speed.seconds_per_answer if speed else None,
        "seconds_per_answer_single": speed.seconds_per_answer_single if speed else None,
        "engine": speed.engine if speed else None,
        "device": speed.device if speed else None,
        "dtype": speed.dtype if speed else None,
        "timed_prompts": speed.num_prompts if speed else None,
        "timed_max_tokens": speed.max_tokens if speed else None,
        "num_latencies": speed.num_latencies if speed else None,
        "latency_p50_s": speed.latency_p50_s if speed else None,
        "latency_p95_s": speed.latency_p95_s if speed else None,
        "latency_tokens": speed.latency_tokens if speed else None,
        "mean_tokens": score.mean_tokens if score else speed.mean_tokens if speed else None,
        "num_parameters": speed.num_parameters if speed else None,
        "peak_memory_bytes": speed.peak_memory_bytes if speed else None,
    }
