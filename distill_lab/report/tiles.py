"""The page's tiles: a goal of the run each, with its figure, interval, and whether it is met, missed or open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape

from distill_lab.evaluation.goals import Kpi
from distill_lab.evaluation.summary import (
    LATENCY_GOALS_S,
    SPEEDUP_KPI,
    STEPS_KPI,
    latency_kpi,
    latency_tokens,
    no_p95,
    ran_on,
)
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.verdict import RETENTION_KPI, percent, tenths
from distill_lab.formatting import seconds_text, shown, times
from distill_lab.report.elements import badge
from distill_lab.report.figure import LABELS
from distill_lab.report.numbers import DASH, metric_name
from distill_lab.report.result_text import ends_text, kpi_text, settle_text


def tiles_section(summary: Summary) -> str:
    """All tiles."""
    kpis = dict(summary.kpis)
    student = summary.models.get("student") or ModelSummary()
    tiles = [_score_tile(summary, kpis.pop(RETENTION_KPI, None))]

    notes = ["goal: at least 3× the teacher's speed"]
    if summary.speedup is not None:
        notes.append(_interval_note(summary, "speedup", times))
        notes.append("the slower of two ways: in batches, one at a time")
        notes += [text for text in (ran_on(summary.models),) if text]
    value = times(summary.speedup) if summary.speedup is not None else DASH
    tiles.append(_tile("Speedup", value, notes, kpis.pop(SPEEDUP_KPI, None)))

    num_tokens = latency_tokens(summary.models)
    notes = [f"goal: under {LATENCY_GOALS_S[num_tokens]:g} s for {num_tokens} tokens (95th percentile)"]
    if student.latency_p50_s is not None:
        if student.latency_p95_ci95:
            notes.append(f"95% interval {ends_text(student.latency_p95_ci95, seconds_text)}")
        notes.append(f"median {seconds_text(student.latency_p50_s)}, one answer at a time")
        notes += [text for text in (no_p95(student),) if text]
    value = seconds_text(student.latency_p95_s) if student.latency_p95_s is not None else DASH
    tiles.append(_tile("Latency", value, notes, kpis.pop(latency_kpi(num_tokens), None)))

    if (steps := kpis.pop(STEPS_KPI, None)) and student.several_steps is not None:
        notes = ["goal: at least 80%, a final answer after two steps or more", f"{student.several_steps_n} prompts"]
        if steps.ci95:
            notes.append(f"95% interval {ends_text(steps.ci95, percent)}")
        tiles.append(_tile("In several steps", percent(student.several_steps), notes, steps))
    tiles += [_tile(name, kpi_text(kpi) if kpi.value is not None else DASH, [], kpi) for name, kpi in kpis.items()]
    return f'<h2 class="sr">Goals</h2><div class="tiles">{"".join(tiles)}</div>'


def _score_tile(summary: Summary, kpi: Kpi | None) -> str:
    """The student's score against the teacher's; for likeness to a reference the figure itself, and no goal."""
    if summary.metric and summary.metric.similarity:
        scores = {kind: model.score for kind in LABELS if (model := summary.models.get(kind))}
        notes = [f"{LABELS[kind]} {tenths(score)}" for kind, score in scores.items() if score is not None]
        if summary.similarity is not None:
            notes.append(f"{percent(summary.similarity)} of the teacher's figure; no measure of quality")
        score = scores.get("student")
        name = summary.metric.name
        return _tile(name[:1].upper() + name[1:], tenths(score) if score is not None else DASH, notes, None)
    notes = [metric_name(summary), "goal: at least 90% of the teacher's score"]
    if summary.base_retention is not None:
        notes.append(f"the base student: {percent(summary.base_retention)}")
    if summary.retention is not None:
        notes.append(_interval_note(summary, "retention", percent))
    if summary.retention_reason:
        notes.append(f"not reported: {summary.retention_reason}")
    value = percent(summary.retention) if summary.retention is not None else DASH
    return _tile("Score kept", value, notes, kpi)


def _interval_note(summary: Summary, name: str, show: Callable[[float], str]) -> str:
    """The interval of a figure of the summary, or why it has none."""
    interval = getattr(summary, f"{name}_ci95")
    return f"95% interval {ends_text(interval, show)}" if interval else f"no interval: {summary.no_interval[name]}"


def _tile(title: str, value: str, notes: Iterable[str], kpi: Kpi | None) -> str:
    """A figure and its goal: met, missed or open, and then what would settle it."""
    if kpi is None:
        mark = badge("not measured" if value == DASH else "no verdict", "")
    else:
        mark = badge(kpi.status, {"met": "good", "missed": "bad", "open": "open"}[kpi.status])
        text = settle_text(kpi)
        notes = [*notes, *([text] if text else [])]
    small = "".join(f'<span class="small muted">{escape(note)}</span>' for note in notes)
    return (
        f'<div class="card tile"><div class="top"><h3>{shown(title)}</h3>{mark}</div>'
        f'<span class="number">{value}</span>{small}</div>'
    )
