"""A run's report for GitHub and papers: summary.json -> report.md with SVG figures beside it, report.tex, report.csv.

write_markdown(Path("runs/demo"))        runs/demo/report.md, runs/demo/figures/*.svg
write_latex(Path("runs/demo"))           runs/demo/report.tex: tables for the package booktabs
write_csv(Path("runs/demo"))             runs/demo/report.csv: every figure, with its interval
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from distill_lab.evaluation.summary_file import Summary, read_summary
from distill_lab.evaluation.verdict import tenths
from distill_lab.files.jsonl import atomic_path
from distill_lab.report.chart import Panel
from distill_lab.report.figure import LABELS, headline, panel_svg, score_panel, speed_panel
from distill_lab.report.groups import group_panel, group_words
from distill_lab.report.latency import latency_panel, latency_words
from distill_lab.report.next_steps import next_steps
from distill_lab.report.numbers import metric_name
from distill_lab.report.page import read_run_json
from distill_lab.report.result_tables import figures, goals_table, groups_table, models_table, outcome_table
from distill_lab.report.run_facts import facts_of
from distill_lab.report.text_tables import TextTable, markdown_text
from distill_lab.report.tokens import distribution_panel
from distill_lab.report.training_curves import in_words, panels, training_logs
from distill_lab.run import Manifest

FIGURES = "figures"


def write_markdown(run_dir: Path) -> Path:
    """Write report.md and its figures. Raises UserError as `page.write_report`."""
    run, summary = read_run_json(run_dir / "run.json"), read_summary(run_dir / "summary.json")
    drawn = {name: (panel, words) for name, panel, words in _figures(run_dir, run, summary) if panel}
    for name, (panel, words) in drawn.items():
        write_text(run_dir / FIGURES / f"{name}.svg", panel_svg(panel, words))
    return write_text(run_dir / "report.md", "\n".join(_lines(run, summary, run_dir, drawn)))


def write_latex(run_dir: Path) -> Path:
    """Write report.tex. Raises UserError as `page.write_report`."""
    run, summary = read_run_json(run_dir / "run.json"), read_summary(run_dir / "summary.json")
    known = facts_of(run, run_dir)
    caption = f"{known.student} distilled from {known.teacher}: {metric_name(summary)} on {summary.n:,} prompts."
    parts = [
        "% \\usepackage{booktabs} in the preamble; \\input{report.tex} in the text",
        models_table(summary).latex(caption, "tab:distillation-models"),
    ]
    outcome = outcome_table(summary)
    if outcome.rows:
        parts.append(outcome.latex(headline(summary), "tab:distillation-outcome"))
    for grouping in summary.groups:
        title = f"{metric_name(summary)} by {grouping.by}, with 95% intervals.".capitalize()
        parts.append(groups_table(grouping).latex(title, f"tab:distillation-{plain_name(grouping.by)}"))
    return write_text(run_dir / "report.tex", "\n".join(parts))


def write_csv(run_dir: Path) -> Path:
    """Write report.csv. Raises UserError as `page.write_report`."""
    return write_text(run_dir / "report.csv", figures(read_summary(run_dir / "summary.json")).csv())


WRITERS: dict[str, Callable[[Path], Path]] = {"md": write_markdown, "tex": write_latex, "csv": write_csv}


def write_text(path: Path, text: str) -> Path:
    """Write a text, atomically, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return path


def plain_name(text: str) -> str:
    """Text for a file's name or a label: its lower-case letters."""
    return re.sub(r"[^a-z]", "_", text.lower())


def _figures(run_dir: Path, run: Manifest, summary: Summary) -> Iterator[tuple[str, Panel | None, str]]:
    """Name, panel and words of every figure."""
    scores = [(label, summary.models.get(kind)) for kind, label in LABELS.items()]
    said = ", ".join(f"{label} {tenths(model.score)}" for label, model in scores if model and model.score is not None)
    yield "score", score_panel(summary), f"Scores with 95% intervals: {said}"
    yield "speed", speed_panel(summary), headline(summary)
    for number, log in enumerate(training_logs(run_dir, run["stages"]), start=1):
        for name, panel in panels(log).items():
            yield f"{name}{f'_{number}' if number > 1 else ''}", panel, f"{name.replace('_', ' ')}: {in_words(log)}"
    yield "tokens", distribution_panel(summary), "Tokens per answer of each model"
    yield "latency", latency_panel(summary), latency_words(summary)
    for grouping in summary.groups:
        yield f"by_{plain_name(grouping.by)}", group_panel(grouping), group_words(grouping)


def _lines(run: Manifest, summary: Summary, run_dir: Path, drawn: Mapping[str, tuple[Panel, str]]) -> Iterator[str]:
    yield f"# {markdown_text(headline(summary))}\n"
    known = facts_of(run, run_dir).in_words() | {"Score is": metric_name(summary), "Prompts": f"{summary.n:,}"}
    yield TextTable(("", ""), [(name, value) for name, value in known.items() if value]).markdown()
    for note in summary.notes:
        yield f"> {markdown_text(note)}\n"
    if advice := next_steps(summary, run_dir):
        yield "## What to do next\n"
        yield "\n".join(f"- {markdown_text(line)}" for line in advice) + "\n"
    yield "## Result\n"
    yield models_table(summary).markdown()
    for table in (outcome_table(summary), goals_table(summary)):
        if table.rows:
            yield table.markdown()
    for name, (_, words) in drawn.items():
        yield f"![{markdown_text(words)}]({FIGURES}/{name}.svg)\n"
    if summary.groups:
        yield "## Score by group\n"
        for grouping in summary.groups:
            yield f"### By {markdown_text(grouping.by)}\n"
            yield groups_table(grouping).markdown()
    yield "Every test item is in `report.html` and in `eval/`; `summary.json` has all figures.\n"
