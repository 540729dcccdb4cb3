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
    from distill_lab.errors import UserError
    from distill_lab.report.page import write_report
    from distill_lab.run import read_manifest
    from distill_lab.terminal import Terminal

    if (config.run / "run.json").exists():
        read_manifest(config.run / "run.json")
    try:
        written = write_report(config.run)
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{config.run / 'summary.json'} is damaged ({type(error).__name__}: {error}); run the recipe's command again "
            "(finished stages are skipped)"
        ) from error
    Terminal().print(str(written))
