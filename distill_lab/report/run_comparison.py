"""Several runs against the first one: run directories -> gains with paired intervals, and who cannot be compared and why.

found = compare_runs([Path("runs/a"), Path("runs/b")])
found.compared[0].pair.paired.gain         runs/b over runs/a, on the test prompts that both answered
found.left_out                             {"runs/c": "its scores are ROUGE-L overlap, not exact match"}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.run_pairs import RunPair, pair_runs
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import clean
from distill_lab.report.result_text import ends_text
from distill_lab.report.run_table import COLUMNS, Entry, entries_table, read_entry
from distill_lab.report.text_tables import Cell, TextTable

MIN_RUNS = 2


@dataclass(frozen=True, slots=True)
class Compared:
    """A run next to the first one."""

    entry: Entry
    pair: RunPair


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs that were compared, and those that were not."""

    first: Entry
    compared: tuple[Compared, ...]
    left_out: dict[str, str]
    """Run directory -> why it is not compared."""

    @property
    def entries(self) -> list[Entry]:
        """The runs of the table, the first one first."""
        return [self.first, *(each.entry for each in self.compared)]


def compare_runs(directories: Sequence[Path]) -> Comparison:
    """Compare every run with the first. Raises UserError for fewer than two, or if the first one has no scored student."""
    distinct = list(dict.fromkeys(directories))
    if len(distinct) < MIN_RUNS:
        raise UserError("give at least two different run directories; the others are compared with the first")
    first = read_entry(distinct[0])
    if reason := _not_scored(first):
        raise UserError(
            f"{distinct[0]}: {reason}, and the other runs are compared with this one; put another run first"
        )
    compared: list[Compared] = []
    left_out: dict[str, str] = {}
    for directory in distinct[1:]:
        try:
            entry = read_entry(directory)
            reason = _not_scored(entry) or _another_metric(first, entry)
            pair = None if reason else pair_runs(eval_file(first), eval_file(entry))
        except UserError as error:
            left_out[str(directory)] = str(error)
            continue
        if pair is None:
            left_out[str(directory)] = reason
        elif not pair.n:
            left_out[str(directory)] = "no prompt of its test, with its gold answer, is in the first run's test"
        else:
            compared.append(Compared(entry, pair))
    return Comparison(first, tuple(compared), left_out)


def eval_file(entry: Entry) -> Path:
    """The graded answers of a run's student."""
    return entry.facts.directory / "eval" / "student.jsonl"


def _not_scored(entry: Entry) -> str:
    """Why a run has nothing to compare; empty if it has."""
    summary = entry.summary
    if summary is None:
        return entry.problem or f"it has no summary yet ({entry.facts.state})"
    student = summary.models.get("student")
    if student is None or student.score is None:
        return "its student was not scored"
    return "" if eval_file(entry).is_file() else f"{eval_file(entry)} is missing"


def _another_metric(first: Entry, entry: Entry) -> str:
    metrics = [each.summary.metric if each.summary else None for each in (first, entry)]
    names = [metric.name if metric else "of an unknown kind" for metric in metrics]
    return "" if names[0] == names[1] else f"its scores are {names[1]}, not {names[0]}"


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The comparison as lines for a terminal, after the table of runs."""
    yield f"Compared with {clean(str(found.first.facts.directory))}:"
    for each in found.compared:
        yield f"  {clean(str(each.entry.facts.directory))}: {pair_text(each.pair)}"
    for name, reason in found.left_out.items():
        yield f"  {clean(name)} cannot be compared: {clean(reason)}"


def pair_text(pair: RunPair) -> str:
    """A paired comparison in words."""
    assert pair.paired is not None, "nothing in common"
    ends = ends_text(pair.paired.ci95, lambda end: f"{100 * end:+.1f}")
    text = (
        f"{tenths(pair.second)} against {tenths(pair.first)}, {100 * pair.paired.gain:+.1f} points [{ends}], "
        f"p = {pair.paired.p_value:.2g} ({pair.paired.test}), on {pair.n:,} common prompts"
    )
    missing = [f"{number:,} only in {where}" for number, where in _missing(pair)]
    return f"{text}; {', '.join(missing)}" if missing else text


def _missing(pair: RunPair) -> list[tuple[int, str]]:
    return [(n, where) for n, where in ((pair.only_first, "the first"), (pair.only_second, "this one")) if n]


def comparison_table(found: Comparison) -> TextTable:
    """Every run with its figures and its difference to the first run; runs left out are rows with the reason."""
    table = entries_table(found.entries)
    more = ("common_prompts", "difference_points", "difference_low", "difference_high", "difference_p", "not_compared")
    rows: list[list[Cell]] = []
    for place, row in enumerate(table.rows):
        pair = found.compared[place - 1].pair if place else None
        extra: list[Cell] = [None] * 5
        if pair and pair.paired:
            low, high = pair.paired.ci95
            extra = [pair.n, 100 * pair.paired.gain, 100 * low, 100 * high, pair.paired.p_value]
        rows.append([*row, *extra, None])
    for name, reason in found.left_out.items():
        rows.append([name, *[None] * (len(COLUMNS) - 1), *[None] * 5, reason])
    return TextTable((*COLUMNS, *more), rows)


def short_comparison(found: Comparison) -> TextTable:
    """The comparison as people read it, for Markdown and the page."""
    columns = (
        "run",
        "teacher",
        "data",
        "rows",
        "score",
        "95% interval",
        "difference",
        "95% interval of it",
        "p",
        "prompts",
    )
    rows: list[list[Cell]] = []
    for place, entry in enumerate(found.entries):
        facts, student = entry.facts, entry.summary.models["student"] if entry.summary else None
        assert student is not None, "a run without a summary was compared"
        assert student.score is not None, "a run without a score was compared"
        ends = ends_text(student.ci95, lambda end: f"{100 * end:.1f}") if student.ci95 else None
        cells: list[Cell] = [str(facts.directory), facts.teacher, facts.data, facts.rows, tenths(student.score), ends]
        pair = found.compared[place - 1].pair if place else None
        if pair and pair.paired:
            of = ends_text(pair.paired.ci95, lambda end: f"{100 * end:+.1f}")
            cells += [f"{100 * pair.paired.gain:+.1f} points", of, f"{pair.paired.p_value:.2g}", pair.n]
        else:
            cells += ["the first", None, None, entry.summary.n if entry.summary else None]
        rows.append(cells)
    return TextTable(columns, rows)
