"""A run's figures as tables: Summary -> `TextTable`s for CSV, Markdown and LaTeX.

figures(summary).csv()              model, figure, value, low, high: every number of summary.json
models_table(summary).markdown()    a row for each model, as people read it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.summary import latency_tokens
from distill_lab.evaluation.summary_file import Grouping, ModelSummary, Summary
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import bytes_text, seconds_text
from distill_lab.report.figure import LABELS, count
from distill_lab.report.groups import kinds_of
from distill_lab.report.result_text import ends_text, kpi_text, points_text, ratio_text, settle_text, share_text
from distill_lab.report.text_tables import Cell, TextTable

GAINS = ("retention", "similarity", "gain", "p_value")
SPEEDUPS = ("speedup", "speedup_batched", "speedup_single", "speedup_per_token_batched", "speedup_per_token_single")


def figures(summary: Summary) -> TextTable:
    """Every number of the summary in a row: shares and scores as parts of 1, times in seconds, memory in bytes."""
    rows: list[tuple[Cell, ...]] = []
    for kind, model in summary.models.items():
        rows += [(kind, *row) for row in _of_model(model)]
    for name in (*GAINS, *SPEEDUPS):
        value = getattr(summary, name)
        if value is not None:
            rows.append(("", name, value, *_ends(getattr(summary, f"{name}_ci95", None))))
    for grouping in summary.groups:
        for group in grouping.groups:
            for kind, found in group.scores.items():
                rows.append((kind, f"score, {grouping.by} {group.name}", found.score, *found.ci95))
    return TextTable(("model", "figure", "value", "low", "high"), rows)


def _of_model(model: ModelSummary) -> Iterator[tuple[Cell, ...]]:
    intervals = {"score": "ci95", "several_steps": "several_steps_ci95", "latency_p95_s": "latency_p95_ci95"}
    for field in fields(model):
        value = getattr(model, field.name)
        if value is None or field.name == "latencies_s" or field.name in intervals.values():
            continue
        yield (field.name, value, *_ends(getattr(model, intervals.get(field.name, ""), None)))


def _ends(interval: Interval | None) -> tuple[Cell, Cell]:
    return interval if interval else (None, None)


def models_table(summary: Summary) -> TextTable:
    """A row for each model: score with interval, tokens, speed, latency, size, memory."""
    num_tokens = latency_tokens(summary.models)
    columns = (
        "Model",
        "Score",
        "95% interval",
        "Tokens",
        "Tokens/s",
        f"p95, {num_tokens} tokens",
        "Parameters",
        "Memory",
    )
    rows: list[tuple[Cell, ...]] = []
    for kind, label in LABELS.items():
        model = summary.models.get(kind)
        if model is None:
            continue
        rows.append(
            (
                label,
                _or_none(model.score, tenths),
                ends_text(model.ci95, lambda end: f"{100 * end:.1f}") if model.ci95 else None,
                _or_none(model.mean_tokens, lambda value: f"{value:,.1f}"),
                _or_none(model.tokens_per_s, count),
                _or_none(model.latency_p95_s, seconds_text),
                _or_none(model.num_parameters, count),
                _or_none(model.peak_memory_bytes, bytes_text),
            )
        )
    return TextTable(columns, rows)


def _or_none(value: float | None, show: object) -> str | None:
    assert callable(show)
    return None if value is None else str(show(value))


def outcome_table(summary: Summary) -> TextTable:
    """What follows from the scores, each figure with its interval."""
    rows: list[tuple[Cell, ...]] = []
    if summary.retention is not None:
        rows.append(("Retention", share_text(summary.retention, summary.retention_ci95)))
    if summary.gain is not None:
        rows.append(("Gain over the base student", points_text(summary.gain, summary.gain_ci95)))
    if summary.p_value is not None:
        rows.append((f"p ({summary.test})", f"{summary.p_value:.2g}"))
    for title, name in (
        ("Speedup per answer, in batches", "speedup_batched"),
        ("Speedup per answer, one at a time", "speedup_single"),
        ("Speedup per token, in batches", "speedup_per_token_batched"),
        ("Speedup per token, one at a time", "speedup_per_token_single"),
    ):
        value = getattr(summary, name)
        if value is not None:
            rows.append((title, ratio_text(value, getattr(summary, f"{name}_ci95"))))
    return TextTable(("Figure", "Value [95% interval]"), rows)


def goals_table(summary: Summary) -> TextTable:
    """The goals: met, missed or open."""
    rows = [
        (name, kpi.status, kpi_text(kpi) if kpi.value is not None else None, settle_text(kpi))
        for name, kpi in summary.kpis.items()
    ]
    return TextTable(("Goal", "Status", "Figure", "Note"), rows)


def groups_table(grouping: Grouping) -> TextTable:
    """Scores by group, with intervals."""
    kinds = kinds_of(grouping.groups)
    rows: list[tuple[Cell, ...]] = []
    for group in grouping.groups:
        scores = [group.scores.get(kind) for kind in kinds]
        texts = [
            f"{tenths(found.score)} [{ends_text(found.ci95, lambda end: f'{100 * end:.0f}')}]" if found else None
            for found in scores
        ]
        rows.append((group.name, group.n, *texts))
    return TextTable((grouping.by.capitalize(), "Prompts", *(LABELS[kind] for kind in kinds)), rows)
