"""The page's parts on labels and on what an answer costs: summary.json and eval files -> HTML, empty where neither is there.

Cost: the teacher under its long prompt beside the student without. Labels: accuracy per label and model, the student's
confusion matrix, and the worst labels with examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_lab.evaluation.labels import NUM_EXAMPLES, NUM_WORST, LabelReport, label_report
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import shown, times
from distill_lab.report.figure import LABELS


def cost_section(summary: Mapping[str, Any]) -> str:
    """What an answer takes with the prompt and without; empty where the summary has no `cost`."""
    if "cost" not in summary:
        return ""
    cost = summary["cost"]
    rows = []
    for title, key, shape in (
        ("Prompt tokens", "prompt_tokens", ",.1f"),
        ("Completion tokens", "completion_tokens", ",.1f"),
        ("Tokens processed", "tokens", ",.1f"),
        ("Seconds, one at a time", "seconds", ".4f"),
    ):
        cells = "".join(
            f'<td class="{name}">{format(cost[name][key], shape) if cost[name][key] is not None else "–"}</td>'
            for name in ("teacher", "student")
        )
        ratio = cost["ratio"].get(key)
        rows.append(f'<tr><th scope="row">{title}</th>{cells}<td>{times(ratio) if ratio is not None else ""}</td></tr>')
    titles = ("Per answer", "Teacher with prompt", "Student alone", "Ratio")
    heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        '<h2>What an answer costs</h2><p class="muted">The teacher reads its whole prompt and thinks; the student is given '
        "the text alone.</p>"
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def labels_section(summary: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Accuracy per label, matrix and errors from the eval files; empty where the summary has no `labels`."""
    if "labels" not in summary or "student" not in files:
        return ""
    reports = {kind: label_report(path) for kind, path in files.items()}
    student = reports["student"]
    return (
        f'<h2>Labels</h2><p class="muted">A label could be read in {percent(student.parse_rate)} of the student\'s answers.'
        f'</p><div class="card scroll">{_accuracy_table(reports)}</div>'
        f'<h3 class="after">Student: gold labels (rows) and what it said (columns)</h3>'
        f'<div class="card scroll">{_matrix(student)}</div>{_worst(student)}'
    )


def _accuracy_table(reports: Mapping[str, LabelReport]) -> str:
    kinds = [kind for kind in LABELS if kind in reports]
    scores = {kind: {score.label: score for score in reports[kind].per_label} for kind in kinds}
    heads = "".join(f'<th scope="col" class="{kind}">{LABELS[kind]}</th>' for kind in kinds)
    body = ""
    for score in reports["student"].per_label:
        cells = "".join(
            f'<td class="{kind}">{scores[kind][score.label].accuracy:.1%}</td>'
            if score.label in scores[kind]
            else "<td>–</td>"
            for kind in kinds
        )
        body += f'<tr><th scope="row">{shown(score.label)}</th>{cells}<td>{score.total:,}</td></tr>'
    return (
        f'<table><thead><tr><th scope="col">Label, worst first</th>{heads}<th scope="col">Texts</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _matrix(report: LabelReport) -> str:
    heads = "".join(f'<th scope="col">{shown(name)}</th>' for name in report.columns)
    body = ""
    for gold, counts in zip(report.rows, report.matrix, strict=True):
        total = sum(counts)
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--{"good" if said == gold else "bad"}) '
            f'{round(45 * number / total)}%,transparent)">{number or "·"}</td>'
            for said, number in zip(report.columns, counts, strict=True)
        )
        body += f'<tr><th scope="row">{shown(gold)}</th>{cells}<td>{total:,}</td></tr>'
    heads = f'<th scope="col"></th>{heads}<th scope="col">Total</th>'
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _worst(report: LabelReport) -> str:
    parts = []
    for score in report.per_label[:NUM_WORST]:
        errors = "".join(
            f"<li>said {shown(error.predicted)}: <bdi>{shown(error.text[:200])}</bdi></li>"
            for error in score.errors[:NUM_EXAMPLES]
        )
        if errors:
            parts.append(
                f"<p><b>{shown(score.label)}</b> {score.accuracy:.1%} ({score.correct}/{score.total})</p><ul>{errors}</ul>"
            )
    return f'<h3 class="after">Worst labels</h3><div class="card">{"".join(parts)}</div>' if parts else ""
