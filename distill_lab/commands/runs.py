"""List the runs in a folder: what was trained on what, scores with intervals, date and state.

In: a folder of run directories. Out: for each run its path, the student's score with its 95% interval, the base student's,
the gain in points, the share of the teacher's score that is kept (none for similarity to a reference), speedup, date and
state; then recipe, models, data, training rows and test. As text, as CSV with every digit, or as a Markdown table.

    distill runs
    distill runs --format csv > runs.csv
    distill runs runs/sweep --format md
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill runs`."""

    place: tyro.conf.Positional[str] = ""
    """Folder with the run directories, searched recursively; without one, that of --folder."""
    folder: Path = Path("runs")
    """The same, as a flag."""
    format: Literal["text", "csv", "md"] = "text"
    """text: for the terminal; csv: for spreadsheets and programs; md: a table for GitHub."""


def main(config: Config) -> None:
    """Print the table, and the runs that cannot be read with the reason."""
    import sys

    from distill_lab.errors import UserError
    from distill_lab.report.run_table import Entry, entries_table, entry_lines, read_entry, run_directories, short_table
    from distill_lab.terminal import Terminal

    entries: list[Entry] = []
    problems: list[str] = []
    folder = Path(config.place) if config.place else config.folder
    for directory in run_directories(folder):
        try:
            entries.append(read_entry(directory))
        except (UserError, OSError) as error:
            problems.append(f"not listed: {error}")
    if config.format != "text":
        table = entries_table(entries).csv() if config.format == "csv" else short_table(entries).markdown()
        sys.stdout.write(table)
        for problem in problems:
            print(problem, file=sys.stderr)
        return
    terminal = Terminal()
    if entries:
        for line in entry_lines(entries, width=terminal.console.width):
            terminal.print(line)
    elif not problems:
        terminal.print(f"no runs under {folder}")
    for problem in problems:
        terminal.note(problem)
