"""The page's part on training: training_log.jsonl of a run -> curves of loss, validation loss, learning rate, and a table.

logs = training_logs(Path("runs/demo"))
training_section(logs)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.formatting import seconds_text, shown
from distill_lab.report.chart import Line, Panel, Point, line_panel
from distill_lab.report.elements import head, row_head, table
from distill_lab.report.figure import inline_svg
from distill_lab.report.run_student import STAGE, part
from distill_lab.run import StageRecord
from distill_lab.train.training_log import NAME
from distill_lab.types import Fields

NUMBERS = ("epoch", "loss", "learning_rate", "grad_norm", "tokens_per_s", "validation_loss", "seconds")
TABLE_ROWS = 20
"""Of the table under the curves; of longer logs every nth step is in it."""
KINDS = ("student", "base", "teacher", "goal")
"""Classes of lines, in this order."""


@dataclass(frozen=True, slots=True)
class Log:
    """One training."""

    title: str
    path: Path
    rows: tuple[Fields, ...]
    problem: str = ""
    """Why there are no rows."""

    def points(self, name: str) -> list[Point]:
        """(step, value) of the rows that have `name`; a value that was not finite is nan."""
        return [(_step(row), _number(row[name])) for row in self.rows if name in row]

    def metrics(self) -> dict[str, list[Point]]:
        """The objective's parts: name -> points."""
        found: dict[str, list[Point]] = {}
        for row in self.rows:
            for name, value in part(row, "metrics").items():
                found.setdefault(name, []).append((_step(row), _number(value)))
        return found


def training_logs(directory: Path, stages: Mapping[str, StageRecord]) -> list[Log]:
    """The logs of all trainings of a run, in the order of its stages; a damaged one has its `problem` in place of rows."""
    names = [(name, str(stage["at"])) for name, stage in stages.items() if STAGE.fullmatch(name) and "at" in stage]
    found = []
    for name, at in names:
        inside = directory / Path(at).parent if not Path(at).is_absolute() else directory
        path = inside / NAME
        if path.is_file():
            found.append(read_log(path, "Training" if len(names) == 1 else f"Training of {name}"))
    return found


def read_log(path: Path, title: str) -> Log:
    """The log in a file."""
    try:
        rows = tuple(_checked(row, path, number) for number, row in enumerate(read_jsonl(path), start=1))
    except (DataError, OSError) as error:
        return Log(title, path, (), str(error))
    return Log(title, path, rows)


def _checked(row: Fields, path: Path, number: int) -> Fields:
    metrics = row.get("metrics", {})
    values = [row.get(name) for name in NUMBERS] + list(metrics.values() if isinstance(metrics, dict) else ["no"])
    if type(row.get("step")) is not int or any(isinstance(value, bool) or not _is_number(value) for value in values):
        raise DataError(str(path), number, "not a line of a training log")
    return row


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (int, float))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _step(row: Fields) -> int:
    step = row["step"]
    assert isinstance(step, int), "checked by `_checked`"
    return step


def panels(log: Log) -> dict[str, Panel]:
    """The curves of a training: name -> panel."""
    loss = [Line("training", "student", log.points("loss")), Line("validation", "goal", log.points("validation_loss"))]
    rate = [Line("learning rate", "student", log.points("learning_rate"))]
    parts = [Line(name, KINDS[n % len(KINDS)], points) for n, (name, points) in enumerate(log.metrics().items())]
    found = {
        "loss": line_panel("Loss, nats per token", loss, x_title="step"),
        "learning_rate": line_panel("Learning rate", rate, x_title="step", from_zero=True),
        "metrics": line_panel("Parts of the objective, per loss position", parts[:4], x_title="step"),
    }
    return {name: panel for name, panel in found.items() if panel}


def in_words(log: Log) -> str:
    """What the curves show, for those who do not see them."""
    losses, checked = log.points("loss"), log.points("validation_loss")
    steps = max(map(_step, log.rows), default=0)
    parts = [f"{steps:,} steps"]
    if losses:
        parts.append(f"training loss {losses[0][1]:.3f} to {losses[-1][1]:.3f}")
    if len(checked) > 1:
        parts.append(f"validation loss {checked[0][1]:.3f} to {checked[-1][1]:.3f}")
    seconds = [spent for row in log.rows if isinstance(spent := row.get("seconds"), (int, float)) and spent]
    return ", ".join([*parts, *([seconds_text(seconds[-1])] if seconds else [])])


def training_section(logs: Sequence[Log]) -> str:
    """The curves of all trainings, each with its table; empty if there is no log."""
    return "".join(_one(log) for log in logs)


def _one(log: Log) -> str:
    if log.problem:
        return f'<h2>{shown(log.title)}</h2><p class="muted">The curves cannot be drawn: {shown(log.problem)}.</p>'
    if not log.rows:
        return ""
    said = in_words(log)
    drawn = {name.replace("_", " "): panel for name, panel in panels(log).items()}
    cards = "".join(f'<div class="card">{inline_svg(panel, f"{name}: {said}")}</div>' for name, panel in drawn.items())
    return (
        f'<h2>{shown(log.title)}</h2><p class="muted">{said[:1].upper()}{said[1:]}. Losses are means over the steps '
        f'since the point before.</p><div class="figures">{cards}</div>{_table(log)}'
    )


def _table(log: Log) -> str:
    every = max(1, math.ceil(len(log.rows) / TABLE_ROWS))
    rows = [row for place, row in enumerate(log.rows) if place % every == 0 or place == len(log.rows) - 1]
    shapes = {"loss": ".4f", "validation_loss": ".4f", "learning_rate": ".3g", "tokens_per_s": ",.0f"}
    titles = ("Step", "Training loss", "Validation loss", "Learning rate", "Tokens/s")

    def cell(row: Fields, name: str) -> str:
        value = row.get(name)
        return "–" if value is None else format(value, shapes[name])

    body = (row_head(f"{row['step']:,}") + "".join(f"<td>{cell(row, name)}</td>" for name in shapes) for row in rows)
    note = f"{len(rows):,} of {len(log.rows):,} logged steps; {shown(log.path.name)} has them all."
    return (
        f"<details><summary>The curves as a table</summary>{table(f'Steps: {log.title}', map(head, titles), body)}"
        f'<p class="small muted after">{note}</p></details>'
    )
