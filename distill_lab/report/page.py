"""The report of a run: run.json + summary.json + eval/*.jsonl -> report.html, one file that needs nothing else.

    write_report(Path("runs/demo"))

The page loads nothing and runs no script (its own policy forbids both); everything that models or data say is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import first_samples
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
from distill_lab.evaluation.summary_file import ModelSummary, Summary, read_summary
from distill_lab.evaluation.verdict import RETENTION_KPI, percent, tenths
from distill_lab.files.jsonl import atomic_path
from distill_lab.files.records import read_record
from distill_lab.formatting import bytes_text, p_value_text, seconds_text, shown, times
from distill_lab.report.examples import badge, examples_section
from distill_lab.report.figure import LABELS, STYLE, count, headline, inline_svg, score_panel, speed_panel
from distill_lab.report.labels import cost_section, labels_section
from distill_lab.report.on_policy import on_policy_section
from distill_lab.report.overlap import overlap_section
from distill_lab.report.result_text import ends_text, kpi_text, points_text, settle_text
from distill_lab.report.spending import spending_section
from distill_lab.report.style import PAGE_STYLE
from distill_lab.report.tokens import tokens_section

DASH = "–"
"""What was not measured."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises UserError if the run has no summary yet, or an old one."""
    run, summary = _read(run_dir / "run.json"), read_summary(run_dir / "summary.json")
    files = {kind: run_dir / "eval" / f"{kind}.jsonl" for kind in LABELS}
    files = {kind: path for kind, path in files.items() if path.is_file()}
    items = {kind: {row.id: row for row in first_samples(path)} for kind, path in files.items()}
    sections = [
        _head(run, summary),
        _tiles(summary),
        _figures(summary),
        _speedups(summary),
        _table(summary),
        cost_section(summary),
        spending_section(summary.spending),
        labels_section(summary),
        tokens_section(summary),
        on_policy_section(summary),
        examples_section(items, summary.outcomes, alike=summary.metric is not None and summary.metric.similarity),
        overlap_section(summary.test_overlap, run_dir / "overlap.jsonl"),
        _stages(run["stages"]),
        _settings(run),
    ]
    path = run_dir / "report.html"
    page = PAGE.format(
        title=shown(f"{run['recipe']}: {headline(summary)}"), style=STYLE + PAGE_STYLE, body="".join(sections)
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>{body}</main></body>
</html>
"""


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing, so there is nothing to report; let the run finish first")
    return read_record(path)


def _head(run: Mapping[str, Any], summary: Summary) -> str:
    lines = []
    if summary.gain is not None and summary.p_value is not None:
        changed = "raised" if summary.gain > 0 else "lowered" if summary.gain < 0 else "did not change"
        interval = ends_text(summary.gain_ci95, lambda end: f"{100 * end:+.1f}") if summary.gain_ci95 else "none"
        lines.append(
            f"Training {changed} the score ({shown(_metric(summary))}): <b>{points_text(summary.gain, None)}</b> over the "
            f"base student (95% interval {interval}; p {p_value_text(summary.p_value)}, {summary.test} test on "
            f"{summary.n:,} prompts)."
        )
    sizes = [model.num_parameters for kind in ("teacher", "student") if (model := summary.models.get(kind))]
    if len(sizes) == 2 and sizes[0] and sizes[1]:
        lines.append(f"The student has {count(sizes[1])} parameters, the teacher {count(sizes[0])}.")
    text = "".join(f"<p>{line}</p>" for line in lines)
    text += "".join(f'<p class="muted">{shown(note)}</p>' for note in summary.notes)
    text += "".join(f"<p><b>What to try.</b> {shown(line)}</p>" for line in summary.advice)
    return (
        f'<p class="eyebrow">Distillation report · {shown(run["recipe"])}</p><h1>{escape(headline(summary))}</h1>{text}'
    )


def _metric(summary: Summary) -> str:
    return summary.metric.name if summary.metric else "score"


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
    notes = [_metric(summary), "goal: at least 90% of the teacher's score"]
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


def _tiles(summary: Summary) -> str:
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
    return f'<div class="tiles">{"".join(tiles)}</div>'


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
        f'<section class="card tile"><div class="top"><h3>{shown(title)}</h3>{mark}</div>'
        f'<span class="number">{value}</span>{small}</section>'
    )


def _figures(summary: Summary) -> str:
    panels = [
        (score_panel(summary), "Scores with 95% intervals"),
        (speed_panel(summary), "Speed against the teacher's"),
    ]
    cards = "".join(f'<div class="card">{inline_svg(panel, label)}</div>' for panel, label in panels if panel)
    return f'<h2>Score and speed</h2><div class="figures">{cards}</div>' if cards else ""


def _table(summary: Summary) -> str:
    models = {kind: summary.models[kind] for kind in LABELS if kind in summary.models}
    rows: dict[str, dict[str, str]] = {}

    def row(title: str, cells: Mapping[str, str | None]) -> None:
        found = {kind: text for kind, text in cells.items() if text is not None}
        if found:
            rows[title] = found

    def column(key: str, show: Any) -> dict[str, str | None]:
        values = {kind: getattr(model, key) for kind, model in models.items()}
        return {kind: show(value) if value is not None else None for kind, value in values.items()}

    def whole(number: int) -> str:
        return f"{number:,}"

    row(f"Score: {shown(_metric(summary))}", column("score", tenths))
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

    heads = "".join(f'<th scope="col" class="{kind}">{LABELS[kind]}</th>' for kind in models)
    body = "".join(
        f'<tr><th scope="row">{title}</th>'
        + "".join(f'<td class="{kind}">{cells.get(kind, DASH)}</td>' for kind in models)
        + "</tr>"
        for title, cells in rows.items()
    )
    return (
        f'<h2>All numbers</h2><div class="card scroll"><table><thead><tr><th scope="col"></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f'<p class="small muted after">Score: mean of the {shown(_metric(summary))} over the prompts. '
        "Intervals: Clopper and Pearson's for grades of 0 or 1, Gaffke's for other grades, gains and retention, Student's t "
        "on the logarithm for speedups. A goal inside the interval is open; the number that would settle it gives a chance "
        "of 80%, if the figure is the truth. What is cut, unreadable or missing counts as 0. A dash: not measured.</p>"
    )


def _speedups(summary: Summary) -> str:
    """A table of the speedups: in batches and one at a time, per answer and per token, with intervals."""
    if summary.speedup_batched is None:
        return ""

    def cell(name: str) -> str:
        value, interval = getattr(summary, name), getattr(summary, f"{name}_ci95")
        ends = f" ({ends_text(interval, times)})" if interval else ""
        return f"<td>{times(value)}{ends}</td>"

    body = "".join(
        f'<tr><th scope="row">{title}</th>{cell(f"speedup_{way}")}{cell(f"speedup_per_token_{way}")}</tr>'
        for way, title in (("batched", "In batches"), ("single", "One at a time"))
    )
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("Times as fast", "Per answer", "Per token"))
    return f'<div class="card scroll after"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _stages(stages: Mapping[str, Any]) -> str:
    def cells(name: str, stage: Mapping[str, Any]) -> Iterator[str]:
        counts = stage.get("counts") or {}
        dropped = {reason: number for reason, number in counts.get("dropped", {}).items() if number}
        yield f'<th scope="row">{shown(name)}</th>'
        for key in ("rows_in", "kept"):
            yield f"<td>{counts[key]:,}</td>" if counts else f"<td>{DASH}</td>"
        reasons = "<br>".join(f"{number:,} {shown(reason)}" for reason, number in dropped.items())
        yield f"<td>{reasons or ('0' if counts else DASH)}</td>"
        yield f"<td>{seconds_text(stage['seconds'])}{'' if stage['status'] == 'done' else ' (unfinished)'}</td>"

    if not stages:
        return ""
    body = "".join(f"<tr>{''.join(cells(name, stage))}</tr>" for name, stage in stages.items())
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("Stage", "Rows in", "Kept", "Dropped", "Time"))
    return (
        '<h2>Every row accounted for</h2><div class="card scroll">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _settings(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{shown(name)}&nbsp;{shown(version)}" for name, version in run["versions"].items())
    config = shown(json.dumps(run["config"], ensure_ascii=False, indent=2))
    return (
        f'<h2>How to get this again</h2><div class="card"><p class="small">{versions}</p>'
        f"<details open><summary>Configuration</summary><pre>{config}</pre></details></div>"
    )
