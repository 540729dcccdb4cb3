"""Compare several runs with the first one: scores, paired differences, training curves, as text, tables and a page.

In: run directories. Out: text; with --out a page (.html), a table with every digit (.csv) or a Markdown table (.md).
Students are compared prompt by prompt, on the test prompts that both runs have with the same gold answer, whatever their ids
are. A run that cannot be compared is named with the reason.

    distill compare-runs runs/a runs/b runs/c
    distill compare-runs runs/a runs/b --out comparison.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from distill_lab import config as settings

BEGINNINGS = {".html": b"runs compared", ".csv": b"run,recipe,state", ".md": b"| run |"}
"""What is in the first bytes of a file that this command wrote, by its suffix."""


class Config(settings.Config):
    """Settings of `distill compare-runs`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories; the others are compared with the first."""
    out: Path | None = None
    """Also write the comparison to this file: .html, .csv or .md."""


def main(config: Config) -> None:
    """Print the comparison and write the file."""
    from distill_lab.errors import UserError
    from distill_lab.files.outputs import writing
    from distill_lab.planning.preflight import check_writable
    from distill_lab.report.comparison_page import write_comparison
    from distill_lab.report.markdown import write_text
    from distill_lab.report.run_comparison import compare_runs, comparison_lines, comparison_table, short_comparison
    from distill_lab.report.run_table import entry_lines
    from distill_lab.terminal import Terminal

    out = config.out
    if out and out.suffix.lower() not in BEGINNINGS:
        raise UserError(f"--out {out}: give a file that ends in {', '.join(BEGINNINGS)}")
    if out:
        check_writable(out)
        _check_free(out)
    found = compare_runs(config.runs)
    terminal = Terminal()
    for line in entry_lines(found.entries, width=terminal.console.width):
        terminal.print(line)
    terminal.print("")
    for line in comparison_lines(found):
        terminal.wrapped(line, indent=4)
    if out:
        with writing(out):
            if out.suffix.lower() == ".html":
                write_comparison(found, out)
            else:
                table = (
                    comparison_table(found).csv()
                    if out.suffix.lower() == ".csv"
                    else short_comparison(found).markdown()
                )
                write_text(out, table)
        terminal.print(f"written: {out}")


def _check_free(out: Path) -> None:
    """Refuse to write over a file that is not a comparison."""
    from distill_lab.errors import UserError

    if out.is_dir():
        raise UserError(f"--out {out}: this is a folder; give a file name, such as {out / 'comparison.html'}")
    if out.exists():
        with out.open("rb") as file:
            if BEGINNINGS[out.suffix.lower()] not in file.read(800):
                raise UserError(f"--out {out} exists and is not a comparison of runs; choose another name")
