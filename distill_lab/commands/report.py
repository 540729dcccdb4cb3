"""Rewrite a run's report: run directory -> report.html, report.md with figures, report.tex, report.csv.

In: a run directory with summary.json. Out: report.html in it, a single file that needs no network; with --format md a report
for GitHub with its figures as SVG files, with tex tables for LaTeX (booktabs), with csv every figure with its interval.

    distill report runs/system1
    distill report runs/system1 --format tex
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill report`."""

    directory: tyro.conf.Positional[str] = ""
    """The run directory."""
    run: Path | None = None
    """The run directory, as other commands take it."""
    format: Literal["html", "md", "tex", "csv"] = "html"
    """Which report to write; html and md are also written at the end of every run."""


def main(config: Config) -> None:
    """Write the report and print its path."""
    from distill_lab.errors import UserError
    from distill_lab.report.markdown import WRITERS
    from distill_lab.report.page import write_report
    from distill_lab.run import read_manifest
    from distill_lab.terminal import Terminal

    if config.run and config.directory and Path(config.directory) != config.run:
        raise UserError(f"two run directories, {config.directory} and {config.run}; give one of them")
    run = config.run or (Path(config.directory) if config.directory else None)
    if run is None:
        raise UserError("which run? give its directory: distill report runs/system1")
    if (run / "run.json").exists():
        read_manifest(run / "run.json")
    try:
        written = (WRITERS | {"html": write_report})[config.format](run)
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{run / 'summary.json'} is damaged ({type(error).__name__}: {error}); run the recipe's command again "
            "(finished stages are skipped)"
        ) from error
    Terminal().print(str(written))
