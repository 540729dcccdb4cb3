"""The page's part on latency: summary.json's latency answers of each model -> a figure of every one of them."""

from __future__ import annotations

from distill_lab.evaluation.summary import LATENCY_GOALS_S, latency_tokens
from distill_lab.evaluation.summary_file import Summary
from distill_lab.formatting import seconds_text
from distill_lab.report.chart import Panel, Row, interval_panel, ticks_to
from distill_lab.report.figure import LABELS, inline_svg


def latency_section(summary: Summary) -> str:
    """The section; empty if no latency was measured."""
    panel = latency_panel(summary)
    if panel is None:
        return ""
    num_tokens = latency_tokens(summary.models)
    return (
        f'<h2>Latency</h2><p class="muted">Each dot is one answer of {num_tokens} tokens, asked alone; the dot '
        "in full color is the median.</p>"
        f'<div class="figures"><div class="card">{inline_svg(panel, latency_words(summary))}</div></div>'
    )


def latency_panel(summary: Summary) -> Panel | None:
    """Every latency answer of the models that were timed; None if there is none."""
    rows, goal = [], LATENCY_GOALS_S[latency_tokens(summary.models)]
    for kind, label in LABELS.items():
        model = summary.models.get(kind)
        if model and model.latencies_s and model.latency_p50_s is not None:
            text = seconds_text(model.latency_p50_s)
            rows.append(Row(label, kind, model.latency_p50_s, None, text, dots=model.latencies_s))
    if not rows:
        return None
    slowest = max(max(row.dots) for row in rows)
    # A goal far beyond the slowest answer would press the dots together.
    drawn = goal if goal <= 1.5 * slowest else None
    ticks = ticks_to(max(slowest, drawn or 0.0) * 1.02, "{:g} s")
    return interval_panel("Seconds per answer", rows, ticks=ticks, goal=drawn, left=100)


def latency_words(summary: Summary) -> str:
    """The distribution in one sentence."""
    parts = []
    for kind, label in LABELS.items():
        model = summary.models.get(kind)
        if model and model.latencies_s and model.latency_p50_s is not None:
            ends = f"{seconds_text(min(model.latencies_s))} to {seconds_text(max(model.latencies_s))}"
            parts.append(f"{label}: median {seconds_text(model.latency_p50_s)}, {ends}")
    return "; ".join(parts)
