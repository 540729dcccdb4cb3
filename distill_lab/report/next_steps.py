"""What to do next: the one place where advice enters the page, report.md and the comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence

from distill_lab.evaluation.summary_file import Summary
from distill_lab.formatting import shown


def next_steps(summary: Summary) -> Sequence[str]:
    """Sentences of advice, the most useful first; empty if there is nothing to say."""
    return summary.advice


def next_steps_section(summary: Summary) -> str:
    """The sentences as a list; empty without any."""
    items = "".join(f"<li>{shown(line)}</li>" for line in next_steps(summary))
    return f'<h2>What to do next</h2><div class="card"><ul class="steps">{items}</ul></div>' if items else ""
