"""List the runs in a folder with their scores.

In: a folder of run directories. Out: a table with recipe, stages done, metric, the scores of student and base student,
retention (none for similarity to a reference) and speedup.

    distill runs
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from distill_lab import config as settings

COLUMNS = ("run", "recipe", "stages done", "score is", "student", "base", "retention", "speedup")


class Config(settings.Config):
    """Settings of `distill runs`."""

    folder: Path = Path("runs")
    """Folder with the run directories, searched recursively."""


def main(config: Config) -> None:
    """Print the table, and the runs that cannot be read with the reason."""
    from rich.table import Table
    from rich.text import Text

    from distill_lab.errors import UserError
    from distill_lab.formatting import clean
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for column in table.columns[:2]:
        column.overflow = "fold"
    problems: list[str] = []
    paths = sorted(config.folder.rglob("run.json"))
    for path in paths:
        try:
            table.add_row(*(Text(clean(cell).replace("\n", " ")) for cell in _row(path)))
        except UserError as error:
            problems.append(f"not listed: {error}")
    terminal.print(table if table.row_count or problems else f"no runs under {config.folder}")
    for problem in problems:
        terminal.note(problem)


def _row(path: Path) -> list[str]:
    """The cells of one run. Raises DataError if its run.json or summary.json is damaged."""
    from distill_lab.errors import DataError
    from distill_lab.evaluation.verdict import tenths
    from distill_lab.files.bookkeeping import read_record
    from distill_lab.run import read_manifest

    manifest = read_manifest(path)
    stages = manifest["stages"].values()
    done = sum(stage["status"] == "done" for stage in stages)
    summary_path = path.with_name("summary.json")
    summary = read_record(summary_path) if summary_path.exists() else {}

    def inside(of: dict[str, Any], name: str) -> dict[str, Any]:
        found = of.get(name) or {}
        if not isinstance(found, dict):
            raise DataError(str(summary_path), None, f"damaged: `{name}` is not an object")
        return found

    def number(of: dict[str, Any], name: str) -> float | None:
        found = of.get(name)
        if found is None or (isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)):
            return found
        raise DataError(str(summary_path), None, f"damaged: `{name}` is not a number")

    figures = ["-" if (figure := number(summary, key)) is None else f"{figure:.2f}" for key in ("retention", "speedup")]
    scores = [number(inside(inside(summary, "models"), name), "score") for name in ("student", "base")]
    shown = [tenths(score) if score is not None else "-" for score in scores]
    metric = str(inside(summary, "metric").get("short", "-"))
    if "verdict" not in summary and shown[0] != "-":
        metric, figures[0] = "not recorded", "-"
    return [str(path.parent), manifest["recipe"], f"{done} of {len(stages)}", metric, *shown, *figures]
