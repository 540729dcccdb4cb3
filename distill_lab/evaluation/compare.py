"""Models against each other: eval files -> gain with its interval and p-value; scores and speeds -> summary.json;
prompts -> answers side by side.

    paired(run.path("eval/base.jsonl"), run.path("eval/student.jsonl")).p_value
    models = {"Teacher": "tiny:teacher", "System 1": "runs/s1/student"}
    print(render_comparison(compare_models(["Why is the sky blue?"], models)))
"""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.evaluate import RESAMPLES, Score, is_binary, resampled_counts
from distill_lab.evaluation.speed import LATENCY_TOKENS, NUM_LATENCIES, REASONING_TOKENS
from distill_lab.evaluation.verdict import decide
from distill_lab.files.jsonl import read_jsonl
from distill_lab.generation.ask import user_text
from distill_lab.types import Completion, Prompt

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
STEPS_LABEL = "System 2"
LINE = 100
"""Characters per line of a rendered comparison."""


@dataclass(frozen=True, slots=True)
class Paired:
    """What training gained on the same prompts."""

    gain: float
    """Student score minus base score, in [-1, 1]."""
    ci95: tuple[float, float]
    """95% percentile bootstrap interval of `gain`, over pairs."""
    p_value: float
    """Two-sided; probability of so large a difference if neither model were better."""
    test: str
    """The test behind `p_value`: "exact McNemar" or "sign-flip permutation"."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several models answered to one prompt."""

    prompt: str
    answers: Mapping[str, Completion]
    """Label -> answer, in the order the models were given; missing models are not in it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Label -> path of each model that was not found."""


def paired(base: Path, student: Path) -> Paired:
    """Compare two eval files item by item.

    Where all grades are 0 or 1: the exact McNemar test, which is the binomial test of the discordant pairs against 1/2
    (McNemar 1947; Fagerland, Lydersen & Laake 2013, section 2.2). Otherwise a sign-flip permutation test of the mean
    difference, 10,000 flips, seeded (Phipson & Smyth 2010 for the + 1). Raises UserError where the files hold different
    prompts, or none.
    """
    pairs = _pairs(base, student)
    differences = pairs[:, 1] - pairs[:, 0]
    if is_binary(pairs.ravel().tolist()):
        test, p_value = "exact McNemar", mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
    else:
        test, p_value = "sign-flip permutation", sign_flip(differences)
    distinct, counts = np.unique(differences, return_counts=True)
    low, high = np.percentile(resampled_counts(counts, seed=0) @ distinct / len(pairs), [2.5, 97.5])
    return Paired(float(differences.mean()), (float(low), float(high)), p_value, test)


def retention_interval(teacher: Path, student: Path) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of retention (student score / teacher score), over pairs of two eval files.

    None where the teacher's score is 0 in so many resamples that an end of the interval is not a number.
    """
    distinct, counts = np.unique(_pairs(teacher, student), axis=0, return_counts=True)
    totals = resampled_counts(counts, seed=0) @ distinct
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(totals[:, 1] / totals[:, 0])
        low, high = np.percentile(ratios, [2.5, 97.5])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def mcnemar(losses: int, wins: int) -> float:
    """Two-sided exact p-value for `losses` and `wins` among the pairs that differ; 1 where none does."""
    n, fewer = losses + wins, min(losses, wins)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference under random signs of the pairs' differences."""
    rng, observed, extreme = np.random.default_rng(0), abs(differences.sum()), 0
    for _ in range(RESAMPLES // 100):
        signs = rng.integers(0, 2, (100, len(differences))) * 2 - 1
        # The margin keeps sums that are equal on paper equal in floating point.
        extreme += int((np.abs(signs @ differences) >= observed - 1e-9).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def _pairs(first: Path, second: Path) -> np.ndarray:
    """Scores per prompt of two eval files, `[prompts, 2]`."""
    columns = [_score_per_prompt(path) for path in (first, second)]
    if columns[0].keys() != columns[1].keys():
        odd = sorted(columns[0].keys() ^ columns[1].keys())
        raise UserError(
            f"{first} and {second} hold different prompts ({len(odd)} stand in one only, first: {odd[0]}); "
            "evaluate both models on the same prompts"
        )
    if not columns[0]:
        raise UserError(f"{first} and {second} hold no items, so there is nothing to compare")
    return np.array([[column[name] for column in columns] for name in columns[0]])


def _score_per_prompt(path: Path) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in read_jsonl(path):
        scores.setdefault(row["id"], []).append(row["grade"]["score"])
    return {name: sum(values) / len(values) for name, values in scores.items()}


def summarize(
    recipe: str,
    n: int,
    *,
    scores: Mapping[str, Score],
    speeds: Mapping[str, Speed] | None = None,
    gain: Paired | None = None,
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
        "gain": gain.gain if gain else None,
        "p_value": p_value,
        "kpis": kpis,
    }


def latency_kpi(num_tokens: int) -> str:
    """The name of the goal for answers of so many tokens; they are a key of LATENCY_GOALS_S."""
    return f"p95 < {LATENCY_GOALS_S[num_tokens]:g} s per {num_tokens} tokens"


def times(ratio: float, sign: str = "×") -> str:
    """A ratio such as 4.2×; rounded down, so that what is shown as 3.0× has reached 3."""
    if ratio >= 20:
        return f"{math.floor(ratio)}{sign}"
    digits = 10 if ratio >= 1 else 100
    # The margin keeps 4.1 from becoming 4.0 by binary rounding.
    return f"{math.floor(ratio * digits + 1e-9) / digits:.{1 if digits == 10 else 2}f}{sign}"


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


def compare_models(
    prompts: Sequence[str], models: Mapping[str, str | None], *, max_new_tokens: int = 128
) -> list[Comparison]:
    """Ask every model every prompt, greedily, each as one user message, one model in memory at a time.

    The model labelled "System 2" is asked to think step by step, and what it thinks is part of its answer; the others
    are to answer at once. models: label -> path or name ("Teacher", "System 1", "System 2"); None leaves that label
    out. A model that cannot be found is noted in `missing` and skipped. Raises ModelError where a model is there and
    does not load.
    """
    from distill_lab.generation.engines import api_engine, complete, load_engine
    from distill_lab.memory import memory_returned
    from distill_lab.models.loading import load_tokenizer

    answers: list[dict[str, Completion]] = [{} for _ in prompts]
    missing: dict[str, str] = {}
    for label, path in models.items():
        if path is None:
            continue
        config = ModelConfig(model=path)
        if not api_engine(path) and not Path(path).expanduser().exists():
            # A hub id or tiny: name: whether there is such a model shows in the first files it needs.
            try:
                load_tokenizer(config)
            except ModelError:
                missing[label] = path
                continue
        steps = label == STEPS_LABEL
        texts = [user_text(prompt, steps=steps) for prompt in prompts]
        asked = [Prompt(str(index), [{"role": "user", "content": text}]) for index, text in enumerate(texts)]
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, thinking=None if steps or api_engine(path) else False)
        with memory_returned():
            for completion in complete(load_engine(config, EngineConfig()), asked, sampling):
                answers[int(completion.id)][label] = with_thinking(completion) if steps else completion
    return [Comparison(prompt, found, missing) for prompt, found in zip(prompts, answers, strict=True)]


def with_thinking(answer: Completion) -> Completion:
    """The answer with its thinking at the start of its content: the steps are what a System 2 student is asked for."""
    parts = (part.strip() for part in (answer.thinking or "", answer.content) if part.strip())
    return replace(answer, content="\n".join(parts))


def render_comparison(comparisons: Sequence[Comparison], *, teacher_chars: int = 300) -> str:
    """The comparison as plain text: per prompt a block, per model its label on a line of its own, then its answer.

    The answer of the model labelled "Teacher" is cut after `teacher_chars` characters, with a mark that says so. Each
    missing model has the line `Model not found at <path>`. Control characters in answers are left out.
    """
    missing = comparisons[0].missing if comparisons else {}
    lines = [f"Model not found at {path}" for path in missing.values()]
    for number, comparison in enumerate(comparisons, start=1):
        lines += ["=" * LINE, f"Prompt {number} of {len(comparisons)}", *_wrapped(comparison.prompt)]
        for label, completion in comparison.answers.items():
            text = _answer_text(completion, most=teacher_chars if label.lower() == "teacher" else None)
            lines += ["-" * LINE, f"{label}:", *_wrapped(text)]
    return "\n".join([*lines, "=" * LINE] if comparisons else lines)


def _answer_text(completion: Completion, *, most: int | None) -> str:
    if completion.finish_reason == "error":
        return f"[no answer: {completion.error}]"
    text = completion.content.strip()
    if not text:
        text = f"[thinking only] {completion.thinking.strip()}" if completion.thinking else "[empty answer]"
    if most is not None and len(text) > most:
        return f"{text[:most].rstrip()} [... {len(text) - most} more characters]"
    return f"{text} [cut at {completion.num_tokens} tokens]" if completion.finish_reason == "length" else text


def _wrapped(text: str) -> list[str]:
    """Indented lines; what a model says can neither look like one of our own lines nor steer a terminal."""
    lines: list[str] = []
    for line in "".join(filter(_is_safe, text.expandtabs(4))).split("\n"):
        lines += textwrap.wrap(line, LINE - 2, replace_whitespace=False, drop_whitespace=False) or [""]
    return [f"  {line}".rstrip() for line in lines]


def _is_safe(letter: str) -> bool:
    """Whether a terminal shows the letter and does nothing else: no controls, lone surrogates or direction marks."""
    if letter in "\n\u200c\u200d":
        return True
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
