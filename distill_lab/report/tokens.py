"""The page's part on tokens: how long answers are, per model and by level and type, what samples are worth, iterations.

summary.json of a run that has `tokens` -> HTML with one figure, the distribution of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.summary_parts import RoundSummary, TokenStats
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import shown, times
from distill_lab.report.chart import PANEL_WIDTH
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.figure import LABELS, inline_svg

ROW, TOP, BARS = 92, 30, 54
"""Heights in a figure: a model's row, what is above the first, and the highest bar."""
LEFT = 100


def tokens_section(summary: Summary) -> str:
    """The section as HTML; empty if the summary has neither `tokens` nor a histogram."""
    panel = distribution_panel(summary)
    if summary.tokens is None and panel is None:
        return ""
    cards = [f'<div class="card">{inline_svg(panel, _words(summary))}</div>'] if panel else []
    cards += [_group_table(by, (summary.tokens or {}).get(by, {})) for by in ("level", "type")]
    return (
        f'<h2>Tokens</h2><p class="muted">{" ".join(_sentences(summary))}</p>'
        f'<div class="figures">{"".join(cards)}</div>{_iterations(summary.iterations)}'
    )


def distribution_panel(summary: Summary) -> tuple[str, int] | None:
    """SVG elements and height: a histogram of tokens per answer for each model, one scale for all; None without any.

    A bar's height is the share of the model's answers in its bin; the line marks the median.
    """
    if not summary.token_histogram:
        return None
    width, shares = summary.token_histogram.width, summary.token_histogram.shares
    highest = max(max(bins) for bins in shares.values())
    num_bins = max(map(len, shares.values()))
    step = (PANEL_WIDTH - LEFT) / num_bins
    parts = ['<text class="title" x="0" y="18">Tokens per answer</text>']
    kinds = [kind for kind in LABELS if kind in shares]
    for number, kind in enumerate(kinds):
        floor = TOP + number * ROW + BARS + 14
        parts.append(f'<text x="0" y="{floor - 22}">{escape(LABELS[kind])}</text>')
        middle = summary.models[kind].median_tokens or 0.0
        parts.append(f'<text class="note" x="0" y="{floor - 7}">median {middle:g}</text>')
        for place, share in enumerate(shares[kind]):
            if not share:
                continue
            height = BARS * share / highest
            parts.append(
                f'<rect class="{kind}" x="{LEFT + place * step:.1f}" y="{floor - height:.1f}" '
                f'width="{max(step - 1, 1):.1f}" height="{height:.1f}"/>'
            )
        x = LEFT + (middle + 0.5) / width * step
        parts.append(f'<line class="goal" x1="{x:.1f}" y1="{floor - BARS - 6}" x2="{x:.1f}" y2="{floor}"/>')
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{floor}" x2="{PANEL_WIDTH}" y2="{floor}"/>')
    height = TOP + len(kinds) * ROW + 4
    for place in range(0, num_bins, max(1, num_bins // 4)):
        parts.append(f'<text class="note mid" x="{LEFT + place * step:.1f}" y="{height - 6}">{place * width:,}</text>')
    return "".join(parts), height + 4


def _words(summary: Summary) -> str:
    """The histogram in one sentence."""
    models = [(label, summary.models.get(kind)) for kind, label in LABELS.items()]
    return "Tokens per answer, medians: " + ", ".join(
        f"{label} {model.median_tokens:g}" for label, model in models if model and model.median_tokens is not None
    )


def _sentences(summary: Summary) -> list[str]:
    found = (summary.tokens or {}).get("all", {}).get("")
    lines = []
    if found:
        lines.append(
            f"The teacher's {found.num:,} correct solutions take {found.mean:.1f} tokens on average, "
            f"{found.median:g} in the median, {found.shortest:,} to {found.longest:,}."
        )
    if summary.token_ratio is not None:
        lines.append(f"The trained student writes {summary.token_ratio:.2f} times the base student's tokens.")
    if summary.size_ratio is not None:
        lines.append(f"It is {times(summary.size_ratio)} smaller than the teacher.")
    samples = summary.best_of_k
    if samples:
        passes = ", ".join(f"pass@{k} {percent(share)}" for k, share in samples.pass_at.items())
        lines.append(
            f"Of the teacher's samples: {passes}, majority vote {percent(samples.majority)} "
            f"({samples.num_questions:,} questions)."
        )
    return lines


def _group_table(by: str, groups: Mapping[str, TokenStats]) -> str:
    if not groups:
        return ""
    rows = (
        row_head(shown(name)) + f"<td>{each.num:,}</td><td>{each.mean:.1f}</td><td>{each.median:g}</td>"
        for name, each in groups.items()
    )
    title = f"Correct solutions by {by}"
    return (
        f"<div><h3>{title}</h3>{table(title, map(head, (by.capitalize(), 'Solutions', 'Mean', 'Median')), rows)}</div>"
    )


def _iterations(rows: Sequence[RoundSummary]) -> str:
    if len(rows) < 2:
        return ""
    titles = ("Iteration", "Training rows", "Tokens per row", "Validation score", "Tokens per answer")
    body = (
        row_head(str(row.iteration))
        + f"<td>{row.num_rows:,}</td><td>{row.mean_row_tokens:.1f}</td>"
        + f"<td>{100 * (row.validation_score or 0.0):.1f}%</td><td>{row.validation_tokens or 0.0:.1f}</td>"
        for row in rows
    )
    return f"<h2>Iterations</h2>{table('Iterations', map(head, titles), body)}"
