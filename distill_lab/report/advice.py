"""What to try next, computed from a run's figures: Summary and training log -> sentences; none if nothing is wrong.

    for line in advice_lines(summary, Path("runs/first/training_log.jsonl")): print(line)

Each sentence names the figure it follows from. It is said where a goal is missed, where the validation loss rose, and where
the student fell below its base. Goals that are open get no advice: more test prompts settle them, and the report says how
many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import DataError
from distill_lab.evaluation.summary import LATENCY_GOALS_S, SPEEDUP_GOAL, SPEEDUP_KPI, STEPS_KPI
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import LOSS_ROSE, RETENTION_KPI, percent
from distill_lab.files.jsonl import whole_rows
from distill_lab.formatting import seconds_text, times

LATENCY = "p95 <"
"""How the names of latency goals begin."""
MIN_RISE = 0.01
"""Share by which the validation loss must lie above its lowest value to be called risen."""
MIN_LONGER = 1.2
"""Times as many tokens as the teacher's answers from which on the student's length explains its time."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A validation loss while training."""

    step: int
    epoch: float
    loss: float
    """Nats per token."""


def advice_lines(summary: Summary, log: Path | None = None) -> list[str]:
    """Sentences on what to try. log: training_log.jsonl of the run; if it is missing or damaged, its advice is left out."""
    losses = validation_losses(log) if log else []
    turned = list(_turned(losses))
    # Where the loss turned, the rise from the first loss to the last is the same news with less in it.
    lines = [line for line in summary.advice if not (turned and line.startswith(LOSS_ROSE))] + turned
    for name, kpi in summary.kpis.items():
        if kpi.status != "missed":
            continue
        if name == RETENTION_KPI:
            lines += _retention(summary, losses)
        elif name == SPEEDUP_KPI:
            lines += _speedup(summary)
        elif name == STEPS_KPI:
            lines += _steps(summary)
        elif name.startswith(LATENCY):
            lines += _latency(summary)
    return lines


def validation_losses(log: Path) -> list[Loss]:
    """The validation losses in a training log, in the order of the steps; [] if it is missing or damaged."""
    if not log.is_file():
        return []
    try:
        return [
            Loss(int(row["step"]), float(row["epoch"]), float(row["validation_loss"]))
            for row in whole_rows(log)
            if row.get("validation_loss") is not None and row.get("step") is not None and row.get("epoch") is not None
        ]
    except (DataError, TypeError, ValueError):
        return []


def _turned(losses: Sequence[Loss]) -> Iterator[str]:
    """A validation loss that was lower before the end of the training."""
    if len(losses) < 3:
        return
    best, last = min(losses, key=lambda each: each.loss), losses[-1]
    if 0 < best.step < last.step and last.loss > (1 + MIN_RISE) * best.loss:
        yield (
            f"The validation loss was lowest after {best.epoch:.2g} epochs ({best.loss:.3f} nats per token) and then rose "
            f"to {last.loss:.3f}: from there on the student learned its rows by heart. Try --train.num-epochs "
            f"{best.epoch:.2g}, or more training rows."
        )


def _retention(summary: Summary, losses: Sequence[Loss]) -> Iterator[str]:
    scores = {name: model.score for name, model in summary.models.items()}
    teacher, base, student = (scores.get(name) for name in ("teacher", "base", "student"))
    if teacher is None or student is None or (base is not None and student < base):
        return  # a student below its base has other advice
    closed = ""
    if base is not None and teacher > base:
        share = (student - base) / (teacher - base)
        closed = f"Training closed {percent(share)} of the gap between base student and teacher. "
    falling = len(losses) > 1 and losses[-1].loss == min(each.loss for each in losses)
    ways = ["more training rows"]
    ways += ["more epochs, because the validation loss was still falling"] if falling else ["a larger student"]
    if summary.recipe == "system2":
        ways.append("traces of higher verbosity and difficulty (--rv-min, --cd-min)")
    yield f"{closed}To keep more of the teacher's score, try {_listed(ways)}."


def _speedup(summary: Summary) -> Iterator[str]:
    teacher, student = summary.models.get("teacher"), summary.models.get("student")
    if teacher is None or student is None or summary.speedup is None:
        return
    if teacher.mean_tokens and student.mean_tokens and student.mean_tokens > MIN_LONGER * teacher.mean_tokens:
        yield (
            f"The student writes {times(student.mean_tokens / teacher.mean_tokens)} as many tokens per answer as the "
            "teacher, which takes the time: shorter training answers make it faster."
        )
        return
    sizes = ""
    if teacher.num_parameters and student.num_parameters:
        sizes = f" (the teacher has {times(teacher.num_parameters / student.num_parameters)} its parameters)"
    yield (
        f"The student answers {times(summary.speedup)} as fast as the teacher; for {SPEEDUP_GOAL:g} times, try a smaller "
        f"student{sizes}."
    )


def _steps(summary: Summary) -> Iterator[str]:
    student = summary.models.get("student")
    if student is None or student.several_steps is None:
        return
    cut = f"; {percent(student.cut_share)} were cut, which counts as none" if student.cut_share else ""
    yield (
        f"{percent(student.several_steps)} of the answers reason in several steps{cut}. Try training answers that do (their "
        "own share limits the student's), an --instruction that asks for steps, or a higher --test-sampling.max-new-tokens."
    )


def _latency(summary: Summary) -> Iterator[str]:
    student = summary.models.get("student")
    if student is None or student.latency_p95_s is None or student.latency_tokens is None:
        return
    goal = LATENCY_GOALS_S[student.latency_tokens]
    yield (
        f"95% of the answers of {student.latency_tokens} tokens take up to {seconds_text(student.latency_p95_s)}, the goal "
        f"is {goal:g} s: try a smaller student, a faster machine or engine, or `distill export` to a quantized file."
    )


def _listed(ways: Sequence[str]) -> str:
    return f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
