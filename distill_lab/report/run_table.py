"""Tables of runs: run directories -> what was trained, on what, and how good it is, as text, CSV and Markdown.

    found = [read_entry(path) for path in run_directories(Path("runs"))]
    print("\\n".join(entry_lines(found, width=80)))
    print(entries_table(found).csv())

Figures have one form: scores and retention in percent, gains in points. A run without a summary, or with one that cannot be
read, is listed with the reason.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import Summary, read_summary
from distill_lab.evaluation.verdict import percent, tenths
from distill_lab.formatting import clean, times
from distill_lab.report.run_facts import DONE, RunFacts, read_facts
from distill_lab.report.text_tables import Cell, TextTable

HEADS = ("score", "95% interval", "base", "gain", "kept", "speedup", "date", "state")
WIDTHS = (6, 14, 6, 9, 5, 7, 10, 0)
"""Of the columns of figures in text; the last one goes to the end of the line."""
COLUMNS = (
    *("run", "recipe", "state", "date", "teacher", "student", "data", "rows", "training", "metric", "prompts", "score"),
    *(
        "score_low",
        "score_high",
        "base",
        "teacher_score",
        "retention",
        "gain_points",
        "gain_low",
        "gain_high",
        "speedup",
    ),
    *("tokens_per_answer", "latency_p95_s", "seconds", "verdict", "problem"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a table."""

    facts: RunFacts
    summary: Summary | None
    problem: str = ""
    """Why there is no summary."""


def run_directories(folder: Path) -> list[Path]:
    """The directories under `folder`, itself included, that have a run.json."""
    return sorted(path.parent for path in folder.rglob("run.json"))


def read_entry(directory: Path) -> Entry:
    """A run. Raises UserError if its run.json is damaged; a summary that cannot be read is the entry's `problem`."""
    facts = read_facts(directory)
    path = directory / "summary.json"
    if not path.is_file():
        return Entry(facts, None, "" if facts.state != DONE else "no summary.json")
    try:
        return Entry(facts, read_summary(path))
    except (UserError, OSError) as error:
        return Entry(facts, None, str(error))


def entry_lines(entries: Sequence[Entry], *, width: int) -> Iterator[str]:
    """Text: a line with the names of the columns, then for each run its path, its figures, and what was trained on what.

    Lines are wrapped between words; only a single word that is longer than `width` is not.
    """
    yield f"  {_columns(HEADS)}".rstrip()
    for entry in entries:
        yield ""
        yield from _wrapped(str(entry.facts.directory), width, "")
        figures = f"  {_columns(_figures(entry))}".rstrip()
        yield from [figures] if len(figures) <= width else _wrapped(figures.strip(), width, "  ")
        yield from _wrapped(what_text(entry), width, "  ")
        if entry.problem:
            yield from _wrapped(entry.problem, width, "  ")


def what_text(entry: Entry) -> str:
    """What was trained on what, in one line."""
    facts, summary = entry.facts, entry.summary
    models = f"{facts.teacher} -> {facts.student}" if facts.teacher else facts.student
    rows = f"{facts.rows:,} rows" if facts.rows is not None else ""
    tested = f"{summary.metric.short} on {summary.n:,} prompts" if summary and summary.metric else ""
    stopped = facts.state if " in " in facts.state else ""
    return f"{facts.recipe}: " + ", ".join(filter(None, [models, facts.data, rows, tested, stopped]))


def _figures(entry: Entry) -> list[str]:
    """The cells under HEADS."""
    summary, facts = entry.summary, entry.facts
    if summary is None:
        return ["-"] * 6 + [facts.date or "-", _short(facts.state)]
    student, base = summary.models.get("student"), summary.models.get("base")
    ends = student.ci95 if student else None
    return [
        tenths(student.score) if student and student.score is not None else "-",
        f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else "-",
        tenths(base.score) if base and base.score is not None else "-",
        f"{100 * summary.gain:+.1f} pts" if summary.gain is not None else "-",
        percent(summary.retention) if summary.retention is not None else "-",
        times(summary.speedup, "x") if summary.speedup is not None and math.isfinite(summary.speedup) else "-",
        facts.date or "-",
        _short(facts.state),
    ]


def _short(state: str) -> str:
    """stopped, of `stopped in student`, which is said in full in the line below."""
    return state.partition(" in ")[0]


def _columns(cells: Sequence[str]) -> str:
    return "  ".join(f"{clean(cell):<{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    text = " ".join(clean(text).split()) if indent else clean(text).replace("\n", " ")
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent or "  ", break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]  # fmt: skip


def entries_table(entries: Sequence[Entry]) -> TextTable:
    """The runs with all figures: shares of 1 and seconds, gains in points."""
    return TextTable(COLUMNS, [_cells(entry) for entry in entries])


def _cells(entry: Entry) -> list[Cell]:
    facts, summary = entry.facts, entry.summary
    cells: list[Cell] = [str(facts.directory), facts.recipe, facts.state, facts.date, facts.teacher, facts.student]
    cells += [facts.data, facts.rows, facts.training]
    if summary is None:
        return [*cells, *[None] * (len(COLUMNS) - len(cells) - 3), round(facts.seconds, 1), None, entry.problem or None]
    models = summary.models
    student, base, teacher = models.get("student"), models.get("base"), models.get("teacher")
    cells += [summary.metric.short if summary.metric else None, summary.n, student.score if student else None]
    cells += [*(student.ci95 if student and student.ci95 else (None, None)), base.score if base else None]
    cells += [teacher.score if teacher else None, summary.retention]
    cells += [100 * summary.gain if summary.gain is not None else None]
    cells += [100 * end for end in summary.gain_ci95] if summary.gain_ci95 else [None, None]
    cells += [summary.speedup, student.mean_tokens if student else None, student.latency_p95_s if student else None]
    return [*cells, round(facts.seconds, 1), summary.verdict, None]


def short_table(entries: Sequence[Entry]) -> TextTable:
    """The runs as people read them, for Markdown: figures with their units."""
    columns = ("run", "teacher", "student", "data", "rows", "metric", *HEADS)
    rows: list[list[Cell]] = []
    for entry in entries:
        facts, summary = entry.facts, entry.summary
        metric = summary.metric.short if summary and summary.metric else None
        figures = [None if cell == "-" else cell for cell in _figures(entry)]
        rows.append([str(facts.directory), facts.teacher, facts.student, facts.data, facts.rows, metric, *figures])
    return TextTable(columns, rows)
