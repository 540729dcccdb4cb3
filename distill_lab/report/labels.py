"""The page's parts on labels and on what an answer costs: summary.json -> HTML, empty if it has neither.

Cost: the teacher under its long prompt beside the student without. Labels: accuracy per label and model, the student's
confusion matrix, and the worst labels with examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill_lab.evaluation.labels import LabelMatrix, LabelScore, LabelSummary
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import shown, times
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.figure import LABELS
from distill_lab.report.style import SHADES


def cost_section(summary: Summary) -> str:
    """What an answer takes with the prompt and without; empty where the summary has no `cost`."""
    if summary.cost is None:
        return ""
    teacher, student, ratio = summary.cost.teacher, summary.cost.student, summary.cost.ratio
    rows = [
        row_head(title)
        + "".join(
            f'<td class="{name}">{format(value, shape) if value is not None else "–"}</td>'
            for name, value in (("teacher", of_teacher), ("student", of_student))
        )
        + f"<td>{times(ratio) if ratio is not None else ''}</td>"
        for title, of_teacher, of_student, ratio, shape in (
            ("Prompt tokens", teacher.prompt_tokens, student.prompt_tokens, None, ",.1f"),
            ("Completion tokens", teacher.completion_tokens, student.completion_tokens, None, ",.1f"),
            ("Tokens processed", teacher.tokens, student.tokens, ratio.tokens, ",.1f"),
            ("Seconds, one at a time", teacher.seconds, student.seconds, ratio.seconds, ".4f"),
        )
    ]
    titles = ("Per answer", "Teacher with prompt", "Student alone", "Ratio")
    return (
        '<h2>What an answer costs</h2><p class="muted">The teacher reads its whole prompt and thinks; the student is given '
        f"the text alone.</p>{table('Cost of an answer', map(head, titles), rows)}"
    )


def labels_section(summary: Summary) -> str:
    """Accuracy per label, the student's matrix and errors; empty if the summary has no `labels`."""
    labels = summary.labels or {}
    if "student" not in labels:
        return ""
    student = labels["student"]
    return (
        f'<h2>Labels</h2><p class="muted">A label could be read in {percent(student.parse_rate)} of the student\'s '
        f"answers.</p>{_accuracy_table(labels)}"
        f'<h3 class="after">Student: gold labels (rows) and its answers (columns)</h3>'
        f"{_matrix(student.matrix)}{_worst(student.worst)}"
    )


def _accuracy_table(labels: Mapping[str, LabelSummary]) -> str:
    kinds = [kind for kind in LABELS if kind in labels]
    rows = []
    for name in labels["student"].per_label:
        found = {kind: labels[kind].per_label.get(name) for kind in kinds}
        cells = "".join(
            f'<td class="{kind}">{accuracy:.1%}</td>' if accuracy is not None else "<td>–</td>"
            for kind, accuracy in found.items()
        )
        rows.append(row_head(shown(name)) + cells + f"<td>{labels['student'].totals[name]:,}</td>")
    heads = [head("Label, worst first"), *(head(LABELS[kind], kind) for kind in kinds), head("Texts")]
    return table("Accuracy by label", heads, rows)


def _matrix(matrix: LabelMatrix) -> str:
    rows = []
    for gold, counts in zip(matrix.rows, matrix.array, strict=True):
        total = sum(counts)
        cells = "".join(
            f'<td class="{"good" if given == gold else "bad"}-{round(SHADES * number / total)}">{number or "·"}</td>'
            for given, number in zip(matrix.columns, counts, strict=True)
        )
        rows.append(row_head(shown(gold)) + f"{cells}<td>{total:,}</td>")
    heads = [head(""), *map(head, matrix.columns), head("Total")]
    return table("Gold labels and answers of the student", heads, rows)


def _worst(worst: Sequence[LabelScore]) -> str:
    parts = []
    for score in worst:
        errors = "".join(
            f"<li>said {shown(error.predicted)}: <bdi>{shown(error.text[:200])}</bdi></li>" for error in score.errors
        )
        if errors:
            right = f"{score.accuracy:.1%} ({score.correct}/{score.total})"
            parts.append(f"<p><b>{shown(score.label)}</b> {right}</p><ul>{errors}</ul>")
    return f'<h3 class="after">Worst labels</h3><div class="card">{"".join(parts)}</div>' if parts else ""
