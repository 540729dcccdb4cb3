"""The report of a run: run.json + summary.json + eval/*.jsonl + training_log.jsonl -> report.html, one file by itself.

    write_report(Path("runs/demo"))

The page loads nothing. Its own script, allowed by its hash, searches and shows the test items; without it everything else is
there. What models or data say is escaped, or set as text.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import EvalRow, first_samples
from distill_lab.evaluation.summary_file import Summary, read_summary
from distill_lab.files.bookkeeping import read_record
from distill_lab.formatting import p_value_text, shown
from distill_lab.report.agreement import agreement_section
from distill_lab.report.document import document, write_document
from distill_lab.report.elements import contents, facts
from distill_lab.report.examples import examples_section
from distill_lab.report.figure import LABELS, STYLE, count, headline, inline_svg, score_panel, speed_panel
from distill_lab.report.groups import groups_section
from distill_lab.report.items import Items
from distill_lab.report.labels import cost_section, labels_section
from distill_lab.report.latency import latency_section
from distill_lab.report.next_steps import next_steps_section
from distill_lab.report.numbers import metric_name, numbers_section, speedups_table
from distill_lab.report.on_policy import on_policy_section
from distill_lab.report.overlap import overlap_section
from distill_lab.report.ratings import ratings_section
from distill_lab.report.result_text import ends_text, points_text
from distill_lab.report.run_facts import facts_of
from distill_lab.report.run_stages import settings_section, stages_section, took_section
from distill_lab.report.spending import spending_section
from distill_lab.report.style import PAGE_STYLE
from distill_lab.report.tiles import tiles_section
from distill_lab.report.tokens import tokens_section
from distill_lab.report.training_curves import training_logs, training_section
from distill_lab.run import Manifest, manifest_of

VIEWER = Path(__file__).with_name("viewer.js")
"""The page's script."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises UserError if the run has no summary yet, or an old one."""
    run, summary = read_run_json(run_dir / "run.json"), read_summary(run_dir / "summary.json")
    similarity = summary.metric is not None and summary.metric.similarity
    by_label = summary.metric is not None and summary.metric.grader == "label"
    answers = read_answers(run_dir)
    items = Items.read(run_dir, answers, similarity=similarity, by_label=by_label)
    spent = spending_section(summary.spending)
    parts = {
        "goals": ("Goals", tiles_section(summary)),
        "next": ("What to do next", next_steps_section(summary, run_dir)),
        "figures": ("Score and speed", _figures(summary) + speedups_table(summary)),
        "numbers": ("All numbers", numbers_section(summary)),
        "groups": ("Score by group", groups_section(summary.groups, metric_name(summary))),
        "training": ("Training", training_section(training_logs(run_dir, run["stages"]))),
        "tokenizers": ("Different tokenizers", agreement_section(summary)),
        "on-policy": ("On-policy rounds", on_policy_section(summary)),
        "tokens": ("Tokens", tokens_section(summary)),
        "latency": ("Latency", latency_section(summary)),
        "cost": ("Cost", cost_section(summary) + took_section(run["stages"], summary) + spent),
        "labels": ("Labels", labels_section(summary)),
        "ratings": ("Rated by people", ratings_section(summary.ratings, names=LABELS)),
        "examples": ("Side by side", examples_section(answers, summary.outcomes, alike=similarity)),
        "all": ("All test items", items.section() if items else ""),
        "overlap": ("Test and training apart", overlap_section(summary.test_overlap, run_dir / "overlap.jsonl")),
        "stages": ("Every row accounted for", stages_section(run["stages"])),
        "again": ("How to get this again", settings_section(run)),
    }
    found = {name: (title, html) for name, (title, html) in parts.items() if html}
    links = contents((name, title) for name, (title, _) in found.items())
    sections = "".join(f'<section id="{name}">{html}</section>' for name, (_, html) in found.items())
    body = (
        '<a class="skip" href="#main">Skip to the result</a>'
        f'<main id="main" tabindex="-1">{_head(run, summary, run_dir)}{links}{sections}</main>'
    )
    page = document(
        f"{run['recipe']}: {headline(summary)}",
        body,
        style=STYLE + PAGE_STYLE,
        script=VIEWER.read_text(encoding="utf-8") if items else "",
        data=items.data() if items else {},
    )
    path = run_dir / "report.html"
    write_document(path, page)
    return path


def read_run_json(path: Path) -> Manifest:
    """The content of a run.json. Raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing, so there is nothing to report; let the run finish first")
    return manifest_of(read_record(path))


def read_answers(run_dir: Path) -> dict[str, dict[str, EvalRow]]:
    """The eval rows of a run (first samples), by model and id. Raises UserError, naming the file, for a damaged one."""
    files = {kind: run_dir / "eval" / f"{kind}.jsonl" for kind in LABELS}
    return {kind: {row.id: row for row in first_samples(path)} for kind, path in files.items() if path.is_file()}


def gain_text(summary: Summary) -> str:
    """What training changed, in a sentence of HTML; empty if there is no base student to compare with."""
    if summary.gain is None or summary.p_value is None:
        return ""
    changed = "raised" if summary.gain > 0 else "lowered" if summary.gain < 0 else "did not change"
    interval = ends_text(summary.gain_ci95, lambda end: f"{100 * end:+.1f}") if summary.gain_ci95 else "none"
    return (
        f"Training {changed} the score ({shown(metric_name(summary))}): <b>{points_text(summary.gain, None)}</b> over the "
        f"base student (95% interval {interval}; p {p_value_text(summary.p_value)}, {summary.test} test on "
        f"{summary.n:,} prompts)."
    )


def _head(run: Manifest, summary: Summary, run_dir: Path) -> str:
    lines = [text for text in (gain_text(summary),) if text]
    sizes = [model.num_parameters for kind in ("teacher", "student") if (model := summary.models.get(kind))]
    if len(sizes) == 2 and sizes[0] and sizes[1]:
        lines.append(f"The student has {count(sizes[1])} parameters, the teacher {count(sizes[0])}.")
    text = "".join(f"<p>{line}</p>" for line in lines)
    text += "".join(f'<p class="muted">{shown(note)}</p>' for note in summary.notes)
    known = facts_of(run, run_dir).in_words() | {"Score is": metric_name(summary)}
    return (
        f'<header><p class="eyebrow">Distillation report · {shown(run["recipe"])}</p>'
        f"<h1>{escape(headline(summary))}</h1>{text}{facts(known)}</header>"
    )


def _figures(summary: Summary) -> str:
    panels = [
        (score_panel(summary), "Scores with 95% intervals"),
        (speed_panel(summary), "Speed against the teacher's"),
    ]
    cards = "".join(f'<div class="card">{inline_svg(panel, label)}</div>' for panel, label in panels if panel)
    return f'<h2>Score and speed</h2><div class="figures">{cards}</div>' if cards else ""
