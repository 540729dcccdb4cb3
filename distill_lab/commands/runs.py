"""List the runs in a folder with their scores.

In: a folder of run directories. Out: a table with recipe, stages done, metric, the scores of student and base student,
retention (none for similarity to a reference) and speedup.

    distill runs
"""

from __future__ import annotations

import json
from pathlib import Path

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill runs`."""

    folder: Path = Path("runs")
    """Folder with the run directories, searched recursively."""


def main(config: Config) -> None:
    """Print the table."""
    from rich.table import Table

    from distill_lab.evaluation.verdict import tenths
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    table = Table(
        "run", "recipe", "stages done", "score is", "student", "base", "retention", "speedup", box=None, pad_edge=False
    )
    paths = sorted(config.folder.rglob("run.json"))
    for path in paths:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        stages = manifest["stages"].values()
        done = sum(stage["status"] == "done" for stage in stages)
        summary_path = path.with_name("summary.json")
        summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
        figures = [f"{summary[key]:.2f}" if summary.get(key) is not None else "-" for key in ("retention", "speedup")]
        models = summary.get("models") or {}
        scores = [(models.get(name) or {}).get("score") for name in ("student", "base")]
        shown = [tenths(score) if score is not None else "-" for score in scores]
        metric = (summary.get("metric") or {}).get("short", "-")
        if "verdict" not in summary and shown[0] != "-":
            metric, figures[0] = "not recorded", "-"
        table.add_row(str(path.parent), manifest["recipe"], f"{done} of {len(stages)}", metric, *shown, *figures)
    terminal.print(table if paths else f"no runs under {config.folder}")
