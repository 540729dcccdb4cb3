"""What scores allow to be said: a metric, scores of teacher, base student and student -> one verdict and its sentence.

    scores = {"teacher": 0.98, "base": 0.35, "student": 0.95}
    found = decide(metric_of("exact"), scores, n=500, retention_ci95=(0.95, 0.99), p_value=1e-9)
    found.verdict, found.result      # kept, "The student keeps 96% of the teacher's score (exact match)"

Decided here once; summary.json holds it, and page, picture and terminal show it. Nothing is claimed that the scores do not
support: likeness to a reference text is never "kept", neither is a goal that lies inside the interval, a goal that the base
student reaches is not due to the training, and a student below its base is called so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from distill_lab.evaluation.goals import Figure, Kpi, judge
from distill_lab.evaluation.intervals import Interval
from distill_lab.generation.cut_answers import cut_reason
from distill_lab.grading.graders import Metric

RETENTION_GOAL = 0.9
RETENTION_KPI = "retention >= 0.9"
CHANCE = 0.05
LOSS_ROSE = "In training the validation loss rose"
"""How advice begins that says nothing else."""
"""From this p-value on a difference is called within chance."""

KEPT, MISSED, OPEN = "kept", "missed", "open"
"""The student reaches the retention goal, which its base does not; it does not reach it; its interval has it inside."""
AT_GOAL = "base reaches the goal"
"""So does the student, and nothing follows for the training."""
WORSE = "worse than base"
SIMILARITY = "similarity only"
"""The metric is likeness to a reference; there is no verdict."""
CUT_OFTEN = "answers cut"
"""So many answers ended at the token limit that the scores measure the limit."""
CUT_NOTE = (
    "those score 0 whatever they were about to say, so the scores measure the token limit (--test-sampling.max-new-tokens) "
    "and no retention is claimed."
)
TEACHER_AT_ZERO, NO_TEACHER, UNSCORED = "teacher scores 0", "no teacher score", "not scored"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the scores allow to be said."""

    verdict: str
    """One of this file's."""
    result: str
    """A sentence without its full stop."""
    retention: float | None
    """Student score / teacher score; None for likeness, or if it is not reported."""
    base_retention: float | None
    """The same of the base student."""
    retention_reason: str | None
    """Why retention is not reported though there are scores."""
    similarity: float | None
    """Student figure / teacher figure, if the metric is likeness to a reference."""
    base_similarity: float | None
    """The same of the base student."""
    notes: tuple[str, ...]
    """What limits the result."""
    advice: tuple[str, ...]
    kpis: dict[str, Kpi]
    """The retention goal, if there is a verdict on it."""


def decide(
    metric: Metric | None,
    scores: Mapping[str, float],
    *,
    n: int,
    retention_ci95: Interval | None = None,
    p_value: float | None = None,
    losses: tuple[float, float] | None = None,
    cut: Mapping[str, float] | None = None,
) -> Decision:
    """What summary.json says of `scores`, mean grades in [0, 1] of "teacher", "base" and "student" on `n` prompts.

    metric: None if nothing was scored, or if it is not known. retention_ci95: the interval of student over teacher; without
    it the goal is open. p_value: of student against base. losses: validation loss before and after training, nats per token.
    cut: the share of each model's answers that the token limit cut; if the teacher's or the student's are many, nothing is
    called retained, and `retention_reason` says why.
    """
    teacher, base, student = (scores.get(name) for name in ("teacher", "base", "student"))
    ratio, base_ratio = (score / teacher if score is not None and teacher else None for score in (student, base))
    likeness = metric is not None and metric.similarity
    worse = student is not None and base is not None and student < base
    notes: list[str] = []
    kpis: dict[str, Kpi] = {}
    too_cut = cut_reason(cut or {})
    if too_cut:
        ratio = base_ratio = None
        notes.append(f"{too_cut[0].upper()}{too_cut[1:]} of the answers: {CUT_NOTE}")
    elif teacher is not None and student is not None and not likeness:
        figure = Figure(ratio, retention_ci95, "no interval was computed" if teacher else "the teacher scores 0")
        if ratio is not None and ratio >= RETENTION_GOAL and base_ratio is not None and base_ratio >= RETENTION_GOAL:
            notes.append(
                f"The base student already reaches {percent(base_ratio)} of the teacher's score: reaching the goal says "
                "nothing about the training. A harder test, or a stronger teacher, would."
            )
        else:
            kpis[RETENTION_KPI] = judge(figure, RETENTION_GOAL, unit="share", n=n, counted="test prompts")
    if likeness and student is not None:
        assert metric is not None
        notes.append(
            f"{metric.short} rewards shared wording, not truth: it does not measure quality, so there is no verdict."
        )
    if teacher == 0:
        notes.append("The teacher scores 0 here, so there is nothing the student could keep.")
    verdict, result = _verdict(metric, teacher, base, student, n=n, p_value=p_value)
    if verdict in (KEPT, MISSED) and RETENTION_KPI in kpis:
        verdict = {"met": KEPT, "missed": MISSED, "open": OPEN}[kpis[RETENTION_KPI].status]
    if too_cut and verdict in (KEPT, MISSED, AT_GOAL):
        verdict = CUT_OFTEN
        result = f"The student scores {percent(student or 0.0)}; no comparison with the teacher ({too_cut})"
    return Decision(
        verdict=verdict,
        result=result,
        retention=None if likeness else ratio,
        base_retention=None if likeness else base_ratio,
        retention_reason=too_cut,
        similarity=ratio if likeness else None,
        base_similarity=base_ratio if likeness else None,
        notes=tuple(notes),
        advice=tuple(advice(worse=worse, losses=losses)),
        kpis=kpis,
    )


def _verdict(
    metric: Metric | None,
    teacher: float | None,
    base: float | None,
    student: float | None,
    *,
    n: int,
    p_value: float | None,
) -> tuple[str, str]:
    """One of this file's verdicts, and its sentence."""
    if student is None:
        return UNSCORED, "The student has not been scored"
    name, named = (metric.name, f" ({metric.name})") if metric else ("score", "")
    if base is not None and student < base:
        figures = f"{name} {tenths(base)} before, {tenths(student)} after"
        if p_value is not None and p_value >= CHANCE:
            return WORSE, f"Training did not make the student better: {figures}, a difference within chance"
        return WORSE, f"Training made the student worse: {figures}"
    if metric and metric.similarity:
        others = {"teacher": teacher, "base student": base}
        known = ", ".join(f"{who} {tenths(score)}" for who, score in others.items() if score is not None)
        return SIMILARITY, f"The student's {name} is {tenths(student)}" + (f" ({known})" if known else "")
    if not teacher:
        scored = f"The student scores {percent(student)}{named} on {n:,} prompts"
        return (NO_TEACHER if teacher is None else TEACHER_AT_ZERO), scored
    ratio, base_ratio = student / teacher, (base or 0.0) / teacher
    if ratio >= RETENTION_GOAL and base_ratio >= RETENTION_GOAL:
        return AT_GOAL, (
            f"The base student already reaches {percent(base_ratio)} of the teacher's score{named}, the trained student "
            f"{percent(ratio)}"
        )
    verb = "reaches" if ratio > 1 else "keeps"
    verdict = KEPT if ratio >= RETENTION_GOAL else MISSED
    return verdict, f"The student {verb} {percent(ratio)} of the teacher's score{named}"


def advice(*, worse: bool, losses: tuple[float, float] | None) -> list[str]:
    """What to try where the student fell below its base, or the validation loss rose while it trained."""
    rose = losses is not None and round(losses[1], 3) > round(losses[0], 3)  # as they are shown
    if not worse and not rose:
        return []
    signs = ["the score fell below the base student's"] if worse else []
    if rose:
        assert losses is not None
        signs.append(f"the validation loss rose from {losses[0]:.3f} to {losses[1]:.3f} nats per token")
    return [
        f"In training {' and '.join(signs)}. Try more training rows, a lower learning rate (--train.learning-rate) or "
        "fewer epochs (--train.num-epochs)."
    ]


def percent(share: float) -> str:
    """A share in whole percent; where that would read 0%, 90% or 100% and is not quite so, rounded down to a tenth."""
    whole = f"{100 * share:.0f}%"
    if whole in ("0%", "90%", "100%") and share not in (0.0, 0.9, 1.0):
        return f"{math.floor(1000 * share + 1e-9) / 10:.1f}%"
    return whole


def tenths(share: float) -> str:
    """A share in percent with one digit, as scores are shown."""
    return f"{100 * share:.1f}%"
