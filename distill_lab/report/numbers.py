"""The page's tables of figures: summary.json -> all numbers by model, and the speedups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill_lab.evaluation.summary import latency_tokens
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import percent, tenths
from distill_lab.formatting import bytes_text, seconds_text, shown, times
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.figure import LABELS, count
from distill_lab.report.result_text import ends_text

DASH = "–"
"""What was not measured."""


def metric_name(summary: Summary) -> str:
    """What the scores are."""
    return summary.metric.name if summary.metric else "score"


def numbers_section(summary: Summary) -> str:
    """A table with a row for each figure and a column for each model."""
    models = {kind: summary.models[kind] for kind in LABELS if kind in summary.models}
    rows: dict[str, dict[str, str]] = {}

    def row(title: str, cells: Mapping[str, str | None]) -> None:
        found = {kind: text for kind, text in cells.items() if text is not None}
        if found:
            rows[title] = found

    def column(key: str, show: Callable[..., str]) -> dict[str, str | None]:
        values = {kind: getattr(model, key) for kind, model in models.items()}
        return {kind: show(value) if value is not None else None for kind, value in values.items()}

    def whole(number: int) -> str:
        return f"{number:,}"

    row(f"Score: {shown(metric_name(summary))}", column("score", tenths))
    row("95% interval", column("ci95", lambda ends: ends_text(ends, lambda end: f"{100 * end:.1f}")))
    row("Correct", column("correct", lambda number: f"{number:,} of {summary.n:,}"))
    cut = {
        kind: f"{model.truncated:,} ({percent(model.cut_share)})"
        for kind, model in models.items()
        if model.truncated is not None and model.cut_share is not None
    }
    row("Cut at the token limit", cut)
    row("Without a readable answer", column("unparseable", whole))
    row("Missing or failed", column("missing", whole))
    if any(model.timeouts for model in models.values()):
        row("Over the grader's time limit", column("timeouts", whole))
    if any(model.bad_gold for model in models.values()):
        row("Left out: gold answer not readable", column("bad_gold", whole))
    row("Tokens per answer", column("mean_tokens", lambda number: f"{number:,.1f}"))
    row("Tokens per answer, median", column("median_tokens", lambda number: f"{number:,g}"))
    row("Tokens per second, in batches", column("tokens_per_s", count))
    row("Tokens per second, one at a time", column("tokens_per_s_single", count))
    row("Seconds per answer, in batches", column("seconds_per_answer", seconds_text))
    row("Seconds per answer, one at a time", column("seconds_per_answer_single", seconds_text))
    num_tokens = latency_tokens(models)
    row(f"{num_tokens} tokens, median", column("latency_p50_s", seconds_text))
    row(f"{num_tokens} tokens, 95th percentile", column("latency_p95_s", seconds_text))
    row("Parameters", column("num_parameters", count))
    row("Peak memory", column("peak_memory_bytes", bytes_text))

    heads = [head(""), *(head(LABELS[kind], kind) for kind in models)]
    body = (
        row_head(title) + "".join(f'<td class="{kind}">{cells.get(kind, DASH)}</td>' for kind in models)
        for title, cells in rows.items()
    )
    return (
        f"<h2>All numbers</h2>{table('All numbers by model', heads, body)}"
        f'<p class="small muted after">Score: mean of the {shown(metric_name(summary))} over the prompts. '
        "Intervals: Clopper and Pearson's for grades of 0 or 1, Gaffke's for other grades, gains and retention, Student's t "
        "on the logarithm for speedups. A goal inside the interval is open; the number that would settle it gives a chance "
        "of 80%, if the figure is the truth. What is cut, unreadable or missing counts as 0. A dash: not measured.</p>"
    )


def speedups_table(summary: Summary) -> str:
    """A table of the speedups: in batches and one at a time, per answer and per token, with intervals."""
    if summary.speedup_batched is None:
        return ""

    def cell(name: str) -> str:
        value, interval = getattr(summary, name), getattr(summary, f"{name}_ci95")
        ends = f" ({ends_text(interval, times)})" if interval else ""
        return f"<td>{times(value)}{ends}</td>"

    body = (
        row_head(title) + cell(f"speedup_{way}") + cell(f"speedup_per_token_{way}")
        for way, title in (("batched", "In batches"), ("single", "One at a time"))
    )
    return table("Speedups", map(head, ("Times as fast", "Per answer", "Per token")), body, classes="after")
