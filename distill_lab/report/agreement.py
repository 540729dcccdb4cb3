"""The page's part on two different tokenizers: summary.json of a run that has `agreement` -> HTML."""

from __future__ import annotations

from distill_lab.evaluation.summary_file import Summary
from distill_lab.formatting import shown
from distill_lab.report.elements import head, row_head, table
from distill_lab.train.agreement import agreement_rows


def agreement_section(summary: Summary) -> str:
    """The table of what can be compared; empty if the summary has no `agreement`."""
    found = summary.agreement
    if found is None:
        return ""
    rows = [
        f"{row_head(shown(name))}<td>{shown(number)}</td><td>{shown(what)}</td>"
        for name, number, what in agreement_rows(found)
    ]
    text = (
        f"{shown(found.teacher)} and {shown(found.student)} have different tokenizers. The student learned from the "
        "teacher's whole distribution at tokens that are the same for both, and from the likelihood of chunks of text "
        "elsewhere."
    )
    heads = [head(""), head("Number"), head("That is")]
    return f'<h2>Different tokenizers</h2><p class="muted">{text}</p>{table("What can be compared", heads, rows)}'
