"""Rewrite a run's report page: run directory -> report.html.

In: a run directory with summary.json. Out: report.html in it, a single file that needs no network.

    distill report --run runs/system1
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill report`."""

    run: Path
    """The run directory."""


def main(config: Config) -> None:
    """Write the page and print its path."""
    from distill_lab.report.page import write_report

    print(write_report(config.run))
