"""A run's result for a notebook: a run directory -> text, and HTML with the page's figures or the page itself in a frame.

result_lines(Path("runs/first"))      the headline, the table of models, retention, speedup, goals
figures_html(Path("runs/first"))      scores, speed, loss, tokens per answer: the SVG of report.html
page_html(Path("runs/first"))         report.html
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from html import escape
from pathlib import Path

from distill_lab.evaluation.summary_file import Summary, read_summary
from distill_lab.formatting import clean, shown
from distill_lab.report import result_text
from distill_lab.report.chart import Panel
from distill_lab.report.figure import STYLE, headline, inline_svg, score_panel, speed_panel
from distill_lab.report.run_facts import read_facts
from distill_lab.report.tokens import distribution_panel
from distill_lab.report.training_curves import in_words, panels, training_logs
from distill_lab.run import read_manifest

WIDTH = 80
MAX_PAGE_BYTES = 8_000_000
"""A larger page makes a notebook slow; it is named instead of shown."""


def result_lines(directory: Path) -> Iterator[str]:
    """What a terminal says of a finished run. Raises UserError without a summary."""
    summary = read_summary(directory / "summary.json")
    yield clean(headline(summary))
    if summary.models:
        metric = summary.metric.name if summary.metric else "mean grade"
        yield f"score: {metric}, on {summary.n:,} prompts"
        yield from _table(summary)
    yield from map(clean, result_text.findings(summary))
    for name, kpi in summary.kpis.items():
        first, *more = result_text.goal_lines(name, kpi)
        yield f"{kpi.status:<7}{first}"
        yield from (" " * 7 + line for line in more)
    yield from map(clean, summary.notes)
    yield clean(result_text.place_text(directory))


def _table(summary: Summary) -> list[str]:
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, width=WIDTH, force_terminal=False, force_jupyter=False, color_system=None)
    console.print(result_text.model_table(summary.models))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def figures_html(directory: Path) -> str:
    """The figures beside one another, in light or dark as the reader has it; "" if the run has none."""
    summary = read_summary(directory / "summary.json")
    cards = "".join(
        f'<div style="flex:1 1 330px;max-width:430px">{inline_svg(panel, label)}</div>'
        for panel, label in _panels(summary, directory)
    )
    if not cards:
        return ""
    style = "display:flex;flex-wrap:wrap;gap:16px;padding:12px;background:var(--card);max-width:960px"
    return f'<style>{STYLE}</style><div class="fig" style="{style}">{cards}</div>'


def _panels(summary: Summary, directory: Path) -> Iterator[tuple[Panel, str]]:
    found = [
        (score_panel(summary), "Scores with 95% intervals"),
        (speed_panel(summary), "Speed against the teacher's"),
        (distribution_panel(summary), "Tokens per answer"),
    ]
    yield from ((panel, label) for panel, label in found if panel)
    for log in training_logs(directory, read_manifest(directory / "run.json")["stages"]):
        if panel := panels(log).get("loss"):
            yield panel, in_words(log)


def page_html(directory: Path, *, height: int = 720) -> str:
    """report.html in a separate frame, whose styles and script the notebook does not get. height: in pixels."""
    path = directory / "report.html"
    facts = read_facts(directory)
    if not path.is_file() or path.stat().st_size > MAX_PAGE_BYTES:
        return f"<p>The page is in {shown(path)}.</p>"
    page = escape(path.read_text(encoding="utf-8"), quote=True)
    return (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Report of {shown(facts.recipe)}" '
        f'style="width:100%;height:{height}px;border:1px solid #8884"></iframe>'
    )
