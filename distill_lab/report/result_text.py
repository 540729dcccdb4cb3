"""A run's result as text for a terminal: Summary -> lines and a table, at most 80 characters wide.

for part in result_parts(summary, Path("runs/demo")): console.print(part)

Each kind of figure has one form, on the page too: scores in percent with one digit, retention in percent, gains in points,
speedups as 4.1x, latency in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.evaluation.goals import Kpi
from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.summary import latency_tokens, no_p95, ran_on
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import rounded_up, seconds_text, times
from distill_lab.report.ratings import agreement_text, mean_text

if TYPE_CHECKING:
    from rich.table import Table

NAMES = {"teacher": "teacher", "base": "base student", "student": "student"}
GAP = " " * 11
"""Before a line that continues a finding."""


def findings(summary: Summary) -> Iterator[str]:
    """Lines on retention, speedup and gain, each with its interval, and on what was timed."""
    metric = summary.metric.short if summary.metric else "score"
    if summary.retention is not None:
        yield f"retention  {share_text(summary.retention, summary.retention_ci95)} of the teacher's {metric}"
        if summary.base_retention is not None:
            yield f"{GAP}base student {percent(summary.base_retention)}"
    if summary.similarity is not None:
        base = f"; base student {percent(summary.base_similarity)}" if summary.base_similarity is not None else ""
        yield f"similarity {percent(summary.similarity)} of the teacher's {metric}{base}"
    if summary.retention_reason:
        yield f"retention  not reported: {summary.retention_reason} of the answers"
    if summary.gain is not None:
        yield f"gain       {points_text(summary.gain, summary.gain_ci95)} over the base student, p = {summary.p_value:.2g}"
    for name, each in (summary.ratings.models if summary.ratings else {}).items():
        yield f"rated      {NAMES.get(name, name)} {mean_text(each)}"
    if summary.ratings:
        yield f"{GAP}{agreement_text(summary.ratings.agreement)}"
    for title, answer, token in (
        ("in batches", "speedup_batched", "speedup_per_token_batched"),
        ("one at a time", "speedup_single", "speedup_per_token_single"),
    ):
        values = {name: getattr(summary, name) for name in (answer, token)}
        ends = {name: getattr(summary, f"{name}_ci95") for name in (answer, token)}
        if values[answer] is not None:
            yield f"speedup    {ratio_text(values[answer], ends[answer])} per answer, {title}"
            yield f"{GAP}{ratio_text(values[token], ends[token])} per token"
    for name, why in summary.no_interval.items():
        yield f"{GAP}no interval of {name}: {why}"
    if timed_with := ran_on(summary.models):
        yield f"timed with {timed_with}"
        yield f"p50/p95    seconds for one answer of {latency_tokens(summary.models)} tokens at batch size 1"
    for name, model in summary.models.items():
        if reason := no_p95(model):
            yield f"p95        {NAMES.get(name, name)}: {reason}"


def goal_lines(name: str, kpi: Kpi) -> Iterator[str]:
    """What is known of a goal, without its status."""
    yield f"{name}: {kpi_text(kpi)}" if kpi.value is not None else name
    if text := settle_text(kpi):
        yield text


def settle_text(kpi: Kpi) -> str:
    """What would settle an open goal, or why nothing does; empty if there is nothing to say."""
    if kpi.to_settle is None:
        return kpi.why
    return f"about {rounded_up(kpi.to_settle):,} {kpi.counted} would settle it; this run has {kpi.n:,}"


def kpi_text(kpi: Kpi) -> str:
    """The figure behind a goal with its interval."""
    assert kpi.value is not None, "a goal without a figure"
    show: dict[str, Callable[[float, Interval | None], str]] = {"share": share_text, "ratio": ratio_text}
    return show.get(kpi.unit, latency_text)(kpi.value, kpi.ci95)


def share_text(share: float, ci95: Interval | None) -> str:
    """A share with its interval: 93% [88% to 97%]."""
    return percent(share) + _in_brackets(ci95, percent)


def points_text(gain: float, ci95: Interval | None) -> str:
    """A gain with its interval: +12.0 points [+8.1 to +15.8]."""
    return f"{100 * gain:+.1f} points" + _in_brackets(ci95, lambda end: f"{100 * end:+.1f}")


def ratio_text(ratio: float, ci95: Interval | None) -> str:
    """A speedup with its interval: 4.1x [3.9x to 4.3x]."""
    return times(ratio, "x") + _in_brackets(ci95, lambda end: times(end, "x"))


def latency_text(seconds: float, ci95: Interval | None) -> str:
    """Seconds with their interval: 0.71 s [0.70 s to 0.75 s]."""
    return seconds_text(seconds) + _in_brackets(ci95, seconds_text)


def ends_text(ci95: Interval, show: Callable[[float], str]) -> str:
    """The ends of an interval: 88% to 97%."""
    low, high = (show(end) if math.isfinite(end) else "any" for end in ci95)
    return f"{low} to {high}"


def _in_brackets(ci95: Interval | None, show: Callable[[float], str]) -> str:
    return f" [{ends_text(ci95, show)}]" if ci95 else ""


def model_table(models: Mapping[str, ModelSummary]) -> Table:
    """A table with a row per model, at most 80 characters wide."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("score [95%]", "cut", "tokens/s", "p50/p95", "size", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, model in models.items():
        ends = model.ci95
        table.add_row(
            NAMES.get(name, name),
            f"{model.score:.1%} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            if model.score is not None and ends
            else "-",
            "-" if model.cut_share is None else f"{model.cut_share:.0%}",
            "-" if model.tokens_per_s is None else f"{model.tokens_per_s:,.0f}",
            _latency(model),
            "-" if model.num_parameters is None else _size(model.num_parameters),
            "-" if model.peak_memory_bytes is None else _memory(model.peak_memory_bytes),
        )
    return table


def place_text(directory: Path) -> str:
    """Where the files of a run are."""
    return f"all files are in {directory}: report.html, summary.json, graded answers in eval/"


def _latency(model: ModelSummary) -> str:
    p50, p95 = model.latency_p50_s, model.latency_p95_s
    if p50 is None:
        return "-"
    digits = 2 if p50 < 10 else 0
    return f"{p50:.{digits}f}/{'-' if p95 is None else f'{p95:.{digits}f}'} s"


def _size(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:,.1f}B"
    return f"{number / 1e6:.{0 if number >= 1e8 else 1}f}M"


def _memory(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number < 1000 * 2**20 else f"{number / 2**30:,.1f} GiB"
