"""The page's parts on labels and on what an answer costs: summary.json -> HTML, empty if it has neither.

Cost: the teacher under its long prompt beside the student without. Labels: accuracy per label and model, the student's
confusion matrix, and the worst labels with examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import shown, times
from distill_lab.report.figure import LABELS


def cost_section(summary: Summary) -> str:
    """What an answer takes with the prompt and without; empty where the summary has no `cost`."""
    if summary.cost is None:
        return ""
    cost = summary.cost
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


def labels_section(summary: Summary) -> str:
    """Accuracy per label, the student's matrix and errors; empty if the summary has no `labels`."""
    labels: Mapping[str, Mapping[str, Any]] = summary.labels or {}
    if "student" not in labels:
        return ""
    student = labels["student"]
    return (
        f'<h2>Labels</h2><p class="muted">A label could be read in {percent(student["parse_rate"])} of the student\'s '
        f'answers.</p><div class="card scroll">{_accuracy_table(labels)}</div>'
        f'<h3 class="after">Student: gold labels (rows) and its answers (columns)</h3>'
        f'<div class="card scroll">{_matrix(student["matrix"])}</div>{_worst(student["worst"])}'
    )


def _accuracy_table(labels: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = [kind for kind in LABELS if kind in labels]
    heads = "".join(f'<th scope="col" class="{kind}">{LABELS[kind]}</th>' for kind in kinds)
    body = ""
    for name in labels["student"]["per_label"]:
        found = {kind: labels[kind]["per_label"].get(name) for kind in kinds}
        cells = "".join(
            f'<td class="{kind}">{accuracy:.1%}</td>' if accuracy is not None else "<td>–</td>"
            for kind, accuracy in found.items()
        )
        body += f'<tr><th scope="row">{shown(name)}</th>{cells}<td>{labels["student"]["totals"][name]:,}</td></tr>'
    return (
        f'<table><thead><tr><th scope="col">Label, worst first</th>{heads}<th scope="col">Texts</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _matrix(matrix: Mapping[str, Any]) -> str:
    heads = "".join(f'<th scope="col">{shown(name)}</th>' for name in matrix["columns"])
    body = ""
    for gold, counts in zip(matrix["rows"], matrix["array"], strict=True):
        total = sum(counts)
        cells = "".join(
            f'<td style="background:color-mix(in srgb,var(--{"good" if given == gold else "bad"}) '
            f'{round(45 * number / total)}%,transparent)">{number or "·"}</td>'
            for given, number in zip(matrix["columns"], counts, strict=True)
        )
        body += f'<tr><th scope="row">{shown(gold)}</th>{cells}<td>{total:,}</td></tr>'
    heads = f'<th scope="col"></th>{heads}<th scope="col">Total</th>'
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _worst(worst: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for score in worst:
        errors = "".join(
            f"<li>said {shown(error['predicted'])}: <bdi>{shown(error['text'][:200])}</bdi></li>"
            for error in score["errors"]
        )
        if errors:
            right, total = score["correct"], score["total"]
            parts.append(
                f"<p><b>{shown(score['label'])}</b> {right / total:.1%} ({right}/{total})</p><ul>{errors}</ul>"
            )
    return f'<h3 class="after">Worst labels</h3><div class="card">{"".join(parts)}</div>' if parts else ""
