"""What to do next: the one place where advice enters the page, report.md and the comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill_lab.evaluation.summary_file import Summary
from distill_lab.formatting import shown
from distill_lab.report.advice import advice_lines
from distill_lab.train.training_log import NAME as TRAINING_LOG


def next_steps(summary: Summary, run_dir: Path) -> Sequence[str]:
    """Sentences of advice, the most useful first; empty if there is nothing to say."""
    return advice_lines(summary, run_dir / TRAINING_LOG)


def next_steps_section(summary: Summary, run_dir: Path) -> str:
    """The sentences as a list; empty without any."""
    items = "".join(f"<li>{shown(line)}</li>" for line in next_steps(summary, run_dir))
    return f'<h2>What to do next</h2><div class="card"><ul class="steps">{items}</ul></div>' if items else ""
