"""The report of a run: run.json + summary.json + eval/*.jsonl -> report.html, one file that needs nothing else.

    write_report(Path("runs/demo"))

The page loads nothing and runs no script (its own policy forbids both); everything that models or data say is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import Score, read_score
from distill_lab.evaluation.statistics import paired, retention_interval
from distill_lab.evaluation.summary import (
    LATENCY_GOALS_S,
    SPEEDUP_KPI,
    STEPS_KPI,
    latency_kpi,
    latency_tokens,
    no_p95,
    ran_on,
)
from distill_lab.evaluation.verdict import RETENTION_GOAL, RETENTION_KPI, percent, tenths
from distill_lab.files.jsonl import atomic_path, read_jsonl
from distill_lab.formatting import shown, times
from distill_lab.report.figure import LABELS, STYLE, count, headline, inline_svg, score_panel, speed_panel
from distill_lab.report.labels import cost_section, labels_section
from distill_lab.report.style import PAGE_STYLE
from distill_lab.report.tokens import tokens_section

MAX_CHARS = 1500
"""Longer texts are cut on the page, with a mark; the eval files hold them whole."""
EXAMPLES = {"lost": 3, "learned": 2, "won": 1, "wrong": 1, "kept": 2}
"""How many examples of each kind are shown, failures first."""
KINDS = {
    "lost": ("Lost", "the teacher does better than the student"),
    "learned": ("Learned", "the student does better than before training"),
    "won": ("Won", "the student does better than the teacher"),
    "wrong": ("Wrong", "neither the teacher nor the student gets it right"),
    "kept": ("Kept", "the student does as well as the teacher"),
}

ALIKE = {
    "lost": ("Further", "the teacher's answer is closer to the reference text"),
    "learned": ("Closer", "closer to the reference text than before training"),
    "won": ("Nearer", "closer to the reference text than the teacher's answer"),
    "wrong": ("Apart", "neither is close to the reference text"),
    "kept": ("Level", "as close to the reference text as the teacher's answer"),
}
"""The same kinds where scores are likeness to a reference: there is no right and wrong."""
OUTCOMES = {
    (True, True): "both right",
    (True, False): "only the teacher right",
    (False, True): "only the student right",
    (False, False): "neither right",
}
"""Teacher right, student right -> how it is called."""

Items = dict[str, dict[str, Any]]
"""Eval rows (first sample) of one model, by id."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises UserError where the run has no summary yet, or an old one."""
    run, summary = _read(run_dir / "run.json"), _read(run_dir / "summary.json")
    if "verdict" not in summary:
        raise UserError(
            f"{run_dir / 'summary.json'} is of an earlier version, which did not record what its scores are; give the "
            f"command of this {run['recipe']} run again (finished stages are skipped)"
        )
    files = {kind: run_dir / "eval" / f"{kind}.jsonl" for kind in LABELS}
    files = {kind: path for kind, path in files.items() if path.is_file()}
    items = {kind: {row["id"]: row for row in read_jsonl(path) if row["sample"] == 0} for kind, path in files.items()}
    sections = [
        _head(run, summary, files),
        _tiles(summary, files),
        _figures(summary),
        _table(summary, {kind: read_score(path) for kind, path in files.items()}),
        cost_section(summary),
        labels_section(summary, files),
        tokens_section(summary, items),
        _examples(items, alike=bool((summary["metric"] or {}).get("similarity"))),
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
    return json.loads(path.read_text(encoding="utf-8"))


def _head(run: Mapping[str, Any], summary: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    lines = []
    if "base" in files and "student" in files:
        result = paired(files["base"], files["student"])
        low, high = (f"{100 * end:+.1f}" for end in result.ci95)
        changed = "raised" if result.gain > 0 else "lowered" if result.gain < 0 else "did not change"
        lines.append(
            f"Training {changed} the score ({shown(_metric(summary))}): <b>{100 * result.gain:+.1f} points</b> over the "
            f"base student (95% interval {low} to {high}; p {_p_value(result.p_value)}, {result.test} test on "
            f"{summary['n']:,} prompts)."
        )
    teacher, student = (summary["models"].get(kind) or {} for kind in ("teacher", "student"))
    sizes = [model.get("num_parameters") for model in (teacher, student)]
    if sizes[0] and sizes[1]:
        lines.append(f"The student has {count(sizes[1])} parameters, the teacher {count(sizes[0])}.")
    text = "".join(f"<p>{line}</p>" for line in lines)
    text += "".join(f'<p class="muted">{shown(note)}</p>' for note in summary["notes"])
    text += "".join(f"<p><b>What to try.</b> {shown(line)}</p>" for line in summary["advice"])
    return (
        f'<p class="eyebrow">Distillation report · {shown(run["recipe"])}</p><h1>{escape(headline(summary))}</h1>{text}'
    )


def _metric(summary: Mapping[str, Any]) -> str:
    return summary["metric"]["name"] if summary["metric"] else "score"


def _score_tile(summary: Mapping[str, Any], files: Mapping[str, Path], *, met: bool | None) -> str:
    """The student's score against the teacher's; for likeness to a reference the figure itself, and no goal."""
    metric = summary["metric"] or {}
    if metric.get("similarity"):
        scores = {kind: (summary["models"].get(kind) or {}).get("score") for kind in LABELS}
        notes = [f"{LABELS[kind]} {tenths(score)}" for kind, score in scores.items() if score is not None]
        if summary["similarity"] is not None:
            notes.append(f"{percent(summary['similarity'])} of the teacher's figure; no measure of quality")
        value = tenths(scores["student"]) if scores["student"] is not None else "–"
        return _tile(metric["name"][:1].upper() + metric["name"][1:], value, notes, met=None)
    notes = [_metric(summary), "goal: at least 90% of the teacher's score"]
    if summary["base_retention"] is not None:
        notes.append(f"the base student: {percent(summary['base_retention'])}")
    if "teacher" in files and "student" in files and summary["retention"] is not None:
        interval = retention_interval(files["teacher"], files["student"])
        if interval:
            notes.append(f"95% interval {percent(interval[0])} to {percent(interval[1])}")
            if met is not None and interval[0] < RETENTION_GOAL <= interval[1]:
                notes.append("the goal lies inside this interval: more prompts would settle it")
    if reason := summary.get("retention_reason"):
        notes.append(f"not claimed: {reason}")
    value = percent(summary["retention"]) if summary["retention"] is not None else "–"
    return _tile("Score kept", value, notes, met=met)


def _tiles(summary: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    kpis = dict(summary["kpis"])
    student = summary["models"].get("student") or {}

    tiles = [_score_tile(summary, files, met=kpis.pop(RETENTION_KPI, None))]

    notes = ["goal: at least 3× the teacher's speed"]
    if summary["speedup"] is not None:
        batched, single = times(summary["speedup_batched"]), times(summary["speedup_single"])
        notes.append(f"{batched} in batches, {single} one at a time; the smaller counts")
        per_token = [ratio for way in ("batched", "single") if (ratio := summary.get(f"speedup_per_token_{way}"))]
        if len(per_token) == 2:
            notes.append(f"per token: {times(per_token[0])} in batches, {times(per_token[1])} one at a time")
        notes += [text for text in (ran_on(summary["models"]),) if text]
    value = times(summary["speedup"]) if summary["speedup"] is not None else "–"
    tiles.append(_tile("Speedup", value, notes, met=kpis.pop(SPEEDUP_KPI, None)))

    num_tokens = latency_tokens(summary["models"])
    notes = [f"goal: under {LATENCY_GOALS_S[num_tokens]:g} s for {num_tokens} tokens (95th percentile)"]
    if student.get("latency_p50_s") is not None:
        notes.append(f"median {_seconds(student['latency_p50_s'])}, one answer at a time")
        notes += [text for text in (no_p95(student),) if text]
    value = _seconds(student["latency_p95_s"]) if student.get("latency_p95_s") is not None else "–"
    tiles.append(_tile("Latency", value, notes, met=kpis.pop(latency_kpi(num_tokens), None)))

    if STEPS_KPI in kpis:
        notes = ["goal: at least 80%, a final answer after two steps or more", f"{student['several_steps_n']} prompts"]
        tiles.append(_tile("In several steps", percent(student["several_steps"]), notes, met=kpis.pop(STEPS_KPI)))
    tiles += [_tile(name, "yes" if met else "no", [], met=met) for name, met in kpis.items()]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(title: str, value: str, notes: Iterable[str], *, met: bool | None) -> str:
    unknown = _badge("not measured" if value == "–" else "no verdict", "")
    badge = {True: _badge("met", "good"), False: _badge("missed", "bad"), None: unknown}[met]
    small = "".join(f'<span class="small muted">{escape(note)}</span>' for note in notes)
    return (
        f'<section class="card tile"><div class="top"><h3>{shown(title)}</h3>{badge}</div>'
        f'<span class="number">{value}</span>{small}</section>'
    )


def _badge(text: str, kind: str, *, sign: bool = True) -> str:
    mark = {"good": "✓ ", "bad": "✗ "}.get(kind, "") if sign else ""
    return f'<span class="badge {kind}">{mark}{text}</span>'


def _figures(summary: Mapping[str, Any]) -> str:
    panels = [
        (score_panel(summary), "Scores with 95% intervals"),
        (speed_panel(summary), "Speed against the teacher's"),
    ]
    cards = "".join(f'<div class="card">{inline_svg(panel, label)}</div>' for panel, label in panels if panel)
    return f'<h2>Score and speed</h2><div class="figures">{cards}</div>' if cards else ""


def _table(summary: Mapping[str, Any], scores: Mapping[str, Score]) -> str:
    models = {kind: summary["models"][kind] for kind in LABELS if kind in summary["models"]}
    rows: dict[str, dict[str, str]] = {}

    def row(title: str, cells: Mapping[str, str | None]) -> None:
        found = {kind: text for kind, text in cells.items() if text is not None}
        if found:
            rows[title] = found

    def column(key: str, show: Any) -> dict[str, str | None]:
        return {kind: show(model[key]) if model.get(key) is not None else None for kind, model in models.items()}

    row(f"Score: {shown(_metric(summary))}", column("score", tenths))
    if "tokens" in summary and not (summary["metric"] or {}).get("similarity"):
        row("Correct", column("score", lambda score: f"{round(score * summary['n']):,} of {summary['n']:,}"))
    row("95% interval", column("ci95", lambda ends: f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"))
    row(
        "Cut at the token limit",
        {kind: f"{score.truncated:,} ({percent(score.cut_share)})" for kind, score in scores.items()},
    )
    row("Without a readable answer", {kind: f"{score.unparseable:,}" for kind, score in scores.items()})
    row("Missing or failed", {kind: f"{score.missing:,}" for kind, score in scores.items()})
    if any(score.timeouts for score in scores.values()):
        row("Over the grader's time limit", {kind: f"{score.timeouts:,}" for kind, score in scores.items()})
    row("Tokens per answer", column("mean_tokens", lambda number: f"{number:,.1f}"))
    row("Tokens per answer, median", column("median_tokens", lambda number: f"{number:,g}"))
    row("Tokens per second, in batches", column("tokens_per_s", count))
    row("Tokens per second, one at a time", column("tokens_per_s_single", count))
    row("Seconds per answer, in batches", column("seconds_per_answer", _seconds))
    row("Seconds per answer, one at a time", column("seconds_per_answer_single", _seconds))
    num_tokens = latency_tokens(models)
    row(f"{num_tokens} tokens, median", column("latency_p50_s", _seconds))
    row(f"{num_tokens} tokens, 95th percentile", column("latency_p95_s", _seconds))
    row("Parameters", column("num_parameters", count))
    row("Peak memory", column("peak_memory_bytes", _bytes))

    heads = "".join(f'<th scope="col" class="{kind}">{LABELS[kind]}</th>' for kind in models)
    body = "".join(
        f'<tr><th scope="row">{title}</th>'
        + "".join(f'<td class="{kind}">{cells.get(kind, "–")}</td>' for kind in models)
        + "</tr>"
        for title, cells in rows.items()
    )
    return (
        f'<h2>All numbers</h2><div class="card scroll"><table><thead><tr><th scope="col"></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f'<p class="small muted after">Score: mean of the {shown(_metric(summary))} over the prompts. '
        "Interval: Wilson's for grades of 0 or 1, bootstrap "
        "otherwise. What is cut, unreadable or missing counts as 0. A dash: not measured.</p>"
    )


def _examples(items: Mapping[str, Items], *, alike: bool) -> str:
    """Examples of every kind. alike: scores are likeness to a reference, so nothing is right or wrong."""
    if "student" not in items:
        return ""
    chosen: dict[str, list[str]] = {kind: [] for kind in EXAMPLES}
    totals = dict.fromkeys(OUTCOMES.values(), 0)
    for name, row in items["student"].items():
        scores = {model: rows[name]["grade"]["score"] for model, rows in items.items() if name in rows}
        kind = _kind(scores)
        if len(chosen[kind]) < EXAMPLES[kind]:
            chosen[kind].append(name)
        if "teacher" in scores:
            totals[OUTCOMES[scores["teacher"] >= 0.5, row["grade"]["score"] >= 0.5]] += 1
    parts = ["<h2>Side by side</h2>"]
    if "teacher" in items and not alike:
        cells = "".join(
            f'<div class="card"><b>{number:,}</b><span class="small muted">{outcome}</span></div>'
            for outcome, number in totals.items()
        )
        parts.append(f'<div class="outcomes">{cells}</div>')
    parts.append(
        '<p class="muted">The first of each kind in the eval files, failures first; none is picked by hand.</p>'
    )
    for kind, names in chosen.items():
        parts += [_example(kind, name, items, alike=alike) for name in names]
    return "".join(parts)


def _kind(scores: Mapping[str, float]) -> str:
    """Which kind of example an item is, from its scores per model."""
    student = scores["student"]
    if student < scores.get("teacher", student):
        return "lost"
    if student > scores.get("teacher", student):
        return "won"
    if student > scores.get("base", student):
        return "learned"
    return "kept" if student >= 0.5 else "wrong"


def _example(kind: str, name: str, items: Mapping[str, Items], *, alike: bool) -> str:
    row = items["student"][name]
    title, meaning = (ALIKE if alike else KINDS)[kind]
    colour = "" if alike else "bad" if kind in ("lost", "wrong") else "good"
    badge = _badge(title, colour, sign=False)
    turns = "\n\n".join(
        message["content"] if message["role"] == "user" else f"[{message['role']}] {message['content']}"
        for message in row["prompt"]
    )
    title = "Reference" if alike else "Gold answer"
    gold = (
        f'<p class="gold"><span class="muted">{title}:</span> <bdi>{_cut(row["answer"])}</bdi></p>'
        if row["answer"]
        else ""
    )
    answers = "".join(_answer(model, rows[name], alike=alike) for model, rows in items.items() if name in rows)
    return (
        f'<article class="card example"><div class="top"><span>{badge} <span class="small muted">{meaning}</span>'
        f'</span><span class="small muted">{shown(name)}</span></div>'
        f'<p class="text-block question" dir="auto">{_cut(turns)}</p>{gold}'
        f'<div class="answers">{answers}</div></article>'
    )


def _answer(model: str, row: Mapping[str, Any], *, alike: bool) -> str:
    score = row["grade"]["score"]
    number = _badge(f"{score:.2f}", "")
    verdict = {1.0: _badge("right", "good"), 0.0: _badge("wrong", "bad")}.get(score, number) if not alike else number
    how = {"length": "cut at the limit", "missing": "no answer", "error": "failed"}.get(row["finish_reason"])
    tokens = f"{row['num_tokens']:,} tokens" + (f", {how}" if how else "")
    output = _cut(row["output"]) or '<span class="muted">(empty)</span>'
    thinking = ""
    if row["thinking"]:
        text = _cut(row["thinking"])
        thinking = f'<details><summary>Thinking</summary><p class="text-block" dir="auto">{text}</p></details>'
    return (
        f'<div class="answer {model}"><div class="top"><h3>{LABELS[model]}</h3>{verdict}</div>'
        f'<p class="text-block" dir="auto">{output}</p>{thinking}<p class="small muted after">{tokens}</p></div>'
    )


def _stages(stages: Mapping[str, Any]) -> str:
    def cells(name: str, stage: Mapping[str, Any]) -> Iterator[str]:
        counts = stage.get("counts") or {}
        dropped = {reason: number for reason, number in counts.get("dropped", {}).items() if number}
        yield f'<th scope="row">{shown(name)}</th>'
        for key in ("rows_in", "kept"):
            yield f"<td>{counts[key]:,}</td>" if counts else "<td>–</td>"
        reasons = "<br>".join(f"{number:,} {shown(reason)}" for reason, number in dropped.items())
        yield f"<td>{reasons or ('0' if counts else '–')}</td>"
        yield f"<td>{_seconds(stage['seconds'])}{'' if stage['status'] == 'done' else ' (unfinished)'}</td>"

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


def _cut(text: str) -> str:
    """Escaped, and cut with a mark where it is long."""
    if len(text) <= MAX_CHARS:
        return shown(text.strip())
    return f'{shown(text[:MAX_CHARS])}<span class="muted"> [… {len(text) - MAX_CHARS:,} more characters]</span>'


def _p_value(p: float) -> str:
    return "&lt; 0.0001" if p < 0.0001 else f"= {p:.2g}"


def _seconds(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _bytes(number: float) -> str:
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
