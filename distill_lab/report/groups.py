"""The page's part on groups: summary.json's `groups` -> a figure and a table for level, type, label and length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill_lab.evaluation.summary_file import Group, Grouping, GroupScore
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import shown
from distill_lab.report.chart import Panel, Row, interval_panel
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.figure import LABELS, inline_svg
from distill_lab.report.result_text import ends_text

MAX_DRAWN = 12
"""Groups of a figure; a grouping with more has its table alone."""
LEFT, MAX_NAME_CHARS = 130, 16
"""The room for the names of groups in a figure, and how many letters that is."""
SHARES = [(tick / 4, f"{25 * tick}%") for tick in range(5)]


def groups_section(groupings: Sequence[Grouping], metric: str) -> str:
    """The section; empty if the test prompts differ in nothing."""
    if not groupings:
        return ""
    return (
        f'<h2>Score by group</h2><p class="muted">{shown(metric[:1].upper() + metric[1:])} with 95% intervals. A group '
        "of few prompts has a wide interval; a difference between groups is only one if the intervals say so.</p>"
        + "".join(map(_grouping, groupings))
    )


def _grouping(grouping: Grouping) -> str:
    panel = group_panel(grouping)
    drawn = f'<div class="card">{inline_svg(panel, group_words(grouping))}</div>' if panel else ""
    without = f" {grouping.without:,} prompts have no {grouping.by}." if grouping.without else ""
    note = f'<p class="small muted after">{without}</p>' if without else ""
    return f'<h3 class="by">By {shown(grouping.by)}</h3><div class="figures">{drawn}{_table(grouping)}</div>{note}'


def group_panel(grouping: Grouping) -> Panel | None:
    """The student's score in each group with its interval; None if there are too many groups, or it has no score."""
    rows = [
        Row(_beginning(group.name), "student", found.score, found.ci95, tenths(found.score))
        for group in grouping.groups
        if (found := group.scores.get("student"))
    ]
    title = f"Student by {grouping.by}"
    return interval_panel(title, rows, ticks=SHARES, left=LEFT) if len(rows) <= MAX_DRAWN else None


def _beginning(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"


def group_words(grouping: Grouping) -> str:
    """The student's scores by group in one sentence."""
    scores = [(group.name, group.scores.get("student")) for group in grouping.groups]
    return "Student: " + ", ".join(f"{name} {tenths(found.score)}" for name, found in scores if found)


def _table(grouping: Grouping) -> str:
    kinds = kinds_of(grouping.groups)
    heads = [
        head(grouping.by[:1].upper() + grouping.by[1:]),
        head("Prompts"),
        *(head(LABELS[kind], kind) for kind in kinds),
    ]
    rows = (
        row_head(f"<bdi>{shown(group.name)}</bdi>")
        + f"<td>{group.n:,}</td>"
        + "".join(f'<td class="{kind}">{_cell(group.scores.get(kind))}</td>' for kind in kinds)
        for group in grouping.groups
    )
    return table(f"Score by {grouping.by}", heads, rows)


def kinds_of(groups: Iterable[Group]) -> list[str]:
    """The models that have scores in some group, in the order they are shown."""
    return [kind for kind in LABELS if any(kind in group.scores for group in groups)]


def _cell(found: GroupScore | None) -> str:
    if found is None:
        return "–"
    ends = ends_text(found.ci95, lambda end: f"{100 * end:.0f}")
    return f'{tenths(found.score)}<br><span class="small muted ends">{ends}</span>'
