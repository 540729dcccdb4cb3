"""Several runs on one page: a Comparison -> HTML with scores, differences, curves over each other, and what was left out.

    write_comparison(compare_runs([Path("runs/a"), Path("runs/b")]), Path("comparison.html"))

The page loads nothing and has no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill_lab.evaluation.verdict import tenths
from distill_lab.files.bookkeeping import read_record
from distill_lab.formatting import shown
from distill_lab.report.chart import Line, Row, interval_panel, line_panel, round_step
from distill_lab.report.document import document, write_document
from distill_lab.report.elements import facts, head, row_head, table
from distill_lab.report.figure import STYLE, inline_svg
from distill_lab.report.groups import SHARES
from distill_lab.report.next_steps import next_steps
from distill_lab.report.numbers import metric_name
from distill_lab.report.run_comparison import Comparison, pair_text, short_comparison
from distill_lab.report.run_table import Entry
from distill_lab.report.style import PAGE_STYLE
from distill_lab.report.text_tables import text_of
from distill_lab.report.training_curves import Log, training_logs

KINDS = ("one", "two", "three", "four", "five", "six")
"""Classes of lines and dots; a seventh run begins again."""


def write_comparison(found: Comparison, path: Path) -> None:
    """Write the page, atomically."""
    entries = found.entries
    sections = [_head(found), _figures(found), _table(found), _curves(entries), _left_out(found), _runs(entries)]
    body = f'<main id="main">{"".join(filter(None, sections))}</main>'
    write_document(path, document(f"{len(entries)} runs compared", body, style=STYLE + PAGE_STYLE))


def _head(found: Comparison) -> str:
    first = found.first.summary
    assert first is not None, "the first run has no summary"
    lines = "".join(
        f"<li><b>{shown(each.entry.facts.directory)}</b>: {shown(pair_text(each.pair))}</li>" for each in found.compared
    )
    listed = f'<ul class="steps">{lines}</ul>' if lines else "<p>No other run can be compared with it.</p>"
    return (
        '<header><p class="eyebrow">Comparison of runs</p>'
        f"<h1>{len(found.entries)} runs, compared with {shown(found.first.facts.directory)}</h1>"
        f"<p>Scores are {shown(metric_name(first))}. Differences are taken prompt by prompt, on the test prompts that both "
        f"runs have with the same gold answer.</p>{listed}</header>"
    )


def _figures(found: Comparison) -> str:
    scores, differences = [], []
    for place, entry in enumerate(found.entries):
        name, kind = str(entry.facts.directory), KINDS[place % len(KINDS)]
        student = entry.summary.models["student"] if entry.summary else None
        if student and student.score is not None:
            scores.append(Row(name, kind, student.score, student.ci95, tenths(student.score)))
        pair = found.compared[place - 1].pair.paired if place else None
        if pair:
            differences.append(Row(name, kind, pair.gain, pair.ci95, f"{100 * pair.gain:+.1f}"))
    cards = [interval_panel("Score of the student, 95% intervals", scores, ticks=SHARES)]
    reach = max((abs(end) for row in differences for end in row.interval or ()), default=0.1) or 0.1
    step = round_step(2 * reach)
    ends = range(-int(-(-reach // step)), int(-(-reach // step)) + 1)
    ticks = [(number * step, f"{100 * number * step:+g}" if number else "0") for number in ends]
    cards.append(interval_panel("Points over the first run, 95% intervals", differences, ticks=ticks, goal=0.0))
    words = ["; ".join(f"{row.name} {row.text}" for row in rows) for rows in (scores, differences)]
    drawn = "".join(
        f'<div class="card">{inline_svg(panel, text)}</div>' for panel, text in zip(cards, words, strict=True) if panel
    )
    return f'<h2>Scores</h2><div class="figures">{drawn}</div>'


def _table(found: Comparison) -> str:
    cells = short_comparison(found)
    rows = (
        row_head(f"<bdi>{shown(row[0])}</bdi>")
        + "".join(f"<td><bdi>{shown(text_of(cell))}</bdi></td>" for cell in row[1:])
        for row in cells.rows
    )
    return f"<h2>Figures</h2>{table('Figures of every run', map(head, cells.columns), rows)}"


def _curves(entries: Sequence[Entry]) -> str:
    logs: list[tuple[str, str, Log]] = []
    for place, entry in enumerate(entries):
        directory = entry.facts.directory
        for log in training_logs(directory, read_record(directory / "run.json")["stages"]):
            logs.append((str(directory), KINDS[place % len(KINDS)], log))
    panels = [
        line_panel(title, [Line(run, kind, log.points(name)) for run, kind, log in logs], x_title="step")
        for title, name in (
            ("Validation loss, nats per token", "validation_loss"),
            ("Training loss, nats per token", "loss"),
            ("Learning rate", "learning_rate"),
        )
    ]
    words = f"Curves of {len(logs)} trainings over their steps"
    cards = "".join(f'<div class="card">{inline_svg(panel, words)}</div>' for panel in panels if panel)
    problems = "".join(f'<p class="muted">{shown(log.problem)}</p>' for _, _, log in logs if log.problem)
    return f'<h2>Training</h2><div class="figures">{cards}</div>{problems}' if cards or problems else ""


def _left_out(found: Comparison) -> str:
    lines = "".join(f"<li><b>{shown(name)}</b>: {shown(reason)}</li>" for name, reason in found.left_out.items())
    return f'<h2>Not compared</h2><div class="card"><ul class="steps">{lines}</ul></div>' if lines else ""


def _runs(entries: Sequence[Entry]) -> str:
    parts = []
    for entry in entries:
        steps = next_steps(entry.summary, entry.facts.directory) if entry.summary else ()
        advice = "".join(f"<li>{shown(line)}</li>" for line in steps)
        listed = f'<ul class="steps after">{advice}</ul>' if advice else ""
        result = f"<p>{shown(entry.summary.result)}.</p>" if entry.summary else ""
        parts.append(
            f'<article class="card example"><h3>{shown(entry.facts.directory)}</h3>{result}'
            f"{facts(entry.facts.in_words())}{listed}</article>"
        )
    return f"<h2>The runs</h2>{''.join(parts)}"
