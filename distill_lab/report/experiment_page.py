"""The page of an experiment: experiment.json -> report.html, and one index page over all experiments of a folder.

    write_experiment(Path("runs/experiments/a"))           runs/experiments/a/report.html
    write_index(Path("runs/experiments"))                  runs/experiments/index.html

Like a run's page, they load nothing and run no script; everything that models or data say is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.conclusion import shown as difference_text
from distill_lab.evaluation.experiment import Example, ExperimentResult, OnPrompts, VariantResult, read_result
from distill_lab.evaluation.failures import KINDS
from distill_lab.evaluation.intervals import Interval, proportion
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import duration, p_value_text, seconds_text, shown
from distill_lab.generation.prices import money
from distill_lab.report.document import document, write_document
from distill_lab.report.elements import badge, head, row_head, table
from distill_lab.report.figure import STYLE, count
from distill_lab.report.ratings import ratings_section
from distill_lab.report.result_text import NAMES
from distill_lab.report.style import PAGE_STYLE
from distill_lab.report.variant_plot import PLOT_STYLE, Point, dot_plot, line_plot

RESULT, REPORT, INDEX = "experiment.json", "report.html", "index.html"
DASH = "–"
TOOK, DIFFERENCES = "What it took", "Differences"
MAX_CHARS = 900
"""Characters shown of an answer; the eval files have all."""
SMALL = (
    "Intervals: Clopper and Pearson's for grades of 0 or 1, Gaffke's for other grades and for differences; p-values: exact "
    "McNemar, or sign flips. What is cut, unreadable or missing counts as 0."
)


def write_experiment(folder: Path) -> Path:
    """Write the page of the experiment in `folder` and return its path. Raises UserError if it has no result."""
    result = read_result(folder / RESULT)
    sections = [
        _head(result),
        _plots(result),
        *(_table(result, prompts) for prompts in _sets(result)),
        _work(result),
        _failures(result),
        _differences(result),
        *(ratings_section(found, names=NAMES, prompts=prompts) for prompts, found in result.ratings.items()),
        _examples(result.examples),
        _setup(result),
    ]
    return _write(folder / REPORT, f"Experiment {result.name}: {result.title}", "".join(sections))


def write_index(folder: Path) -> Path:
    """Write the page that lists all experiments in `folder`, with their conclusions, and return its path."""
    cards = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        try:
            result = read_result(path)
        except UserError as error:
            cards.append(f'<article class="card example"><p>{shown(str(error))}</p></article>')
            continue
        lines = "".join(f"<li>{shown(line)}</li>" for line in map(_sentence, result.conclusion))
        plots = "".join(f'<div class="card">{svg}</div>' for svg in list(_svgs(result))[:1])
        cards.append(
            f'<h2><a href="{shown(path.parent.name)}/{REPORT}">{shown(result.name.upper())}. {shown(result.title)}</a></h2>'
            f"<p>{shown(result.question)}</p><ul>{lines}</ul>"
            f'<p class="small muted">Preset {shown(result.preset)}; {len(result.variants)} variants, '
            f"{_trainings(result)}.</p>"
            f'<div class="figures">{plots}</div>'
        )
    body = f'<p class="eyebrow">Experiments</p><h1>What was asked, and what follows</h1>{"".join(cards)}'
    return _write(folder / INDEX, "Experiments", body)


def _write(path: Path, title: str, body: str) -> Path:
    style = STYLE + PAGE_STYLE + PLOT_STYLE + "a{color:var(--accent)}li{margin:0 0 6px;max-width:74ch}"
    write_document(path, document(title, f'<main id="main">{body}</main>', style=style))
    return path


def _sentence(text: str) -> str:
    """Conclusions name prompts in backticks, for the terminal."""
    return text.replace("`", "")


def _trainings(result: ExperimentResult) -> str:
    return "one training each" if result.seeds == 1 else f"{result.seeds} trainings each"


def _head(result: ExperimentResult) -> str:
    lines = "".join(f"<li>{shown(_sentence(line))}</li>" for line in result.conclusion)
    after = "".join(f"<li>{shown(_sentence(line))}</li>" for line in result.next_steps)
    tries = f"<h3>What to do next</h3><ul>{after}</ul>" if after else ""
    return (
        f'<p class="eyebrow">Experiment {shown(result.name.upper())} · preset {shown(result.preset)}</p>'
        f"<h1>{shown(result.title)}</h1><p>{shown(result.question)}</p>"
        f'<div class="card"><h3>Conclusion</h3><ul>{lines}</ul>{tries}</div>'
    )


def _sets(result: ExperimentResult) -> list[str]:
    return [each.prompts for each in result.variants[0].on]


def _on(variant: VariantResult, prompts: str) -> OnPrompts:
    return next(each for each in variant.on if each.prompts == prompts)


def _plots(result: ExperimentResult) -> str:
    cards = "".join(f'<div class="card">{svg}</div>' for svg in _svgs(result))
    return f'<h2>Results</h2><div class="figures">{cards}</div>'


def _svgs(result: ExperimentResult) -> Iterator[str]:
    for prompts in _sets(result):
        first = _on(result.variants[0], prompts)
        points = []
        for variant in result.variants:
            each = _on(variant, prompts)
            student, seeds = each.models["student"], each.by_seed if len(each.by_seed) > 1 else ()
            points.append(Point(variant.name, variant.value, student.score, student.ci95, seeds))
        title = f"{first.metric.short[:1].upper()}{first.metric.short[1:]}, {prompts}, {first.models['student'].n:,} prompts"
        lines = dict(_references(result, prompts))
        if result.ordered:
            yield line_plot(title, points, axis=result.axis, lines=lines)
        else:
            yield dot_plot(title, points, lines=lines)
        if "steps" in result.shows and first.models["student"].several_steps is not None:
            yield _steps_plot(result, prompts)


def _steps_plot(result: ExperimentResult, prompts: str) -> str:
    points = []
    for variant in result.variants:
        student = _on(variant, prompts).models["student"]
        if student.several_steps is not None and student.several_steps_ci95 is not None:
            points.append(Point(variant.name, variant.value, student.several_steps, student.several_steps_ci95))
    title = f"Answers in several steps, {prompts}"
    if result.ordered:
        return line_plot(title, points, axis=result.axis, lines={})
    return dot_plot(title, points, lines={})


def _references(result: ExperimentResult, prompts: str) -> Iterator[tuple[str, float]]:
    """The scores of teacher and base student, if they are the same for all variants."""
    for name, model in (("Teacher", "teacher"), ("Base student", "base")):
        scores = {
            each.models[model].score for each in (_on(v, prompts) for v in result.variants) if model in each.models
        }
        if len(scores) == 1:
            yield name, scores.pop()


def _table(result: ExperimentResult, prompts: str) -> str:
    first = _on(result.variants[0], prompts)
    steps, speed = "steps" in result.shows, "speed" in result.shows
    titles = [result.axis, "Student", "Base student", "Teacher", "Tokens per answer", "Cut"]
    titles += ["In several steps", "Steps per answer"] if steps else []
    titles += ["Tokens/s", "Latency p50 / p95", "Parameters"] if speed else []
    rows = []
    for variant in result.variants:
        each = _on(variant, prompts)
        student = each.models["student"]
        cells = [_score(each, model) for model in ("student", "base", "teacher")]
        cells += [f"{student.mean_tokens:,.1f}", f"{student.cut_share:.0%}"]
        if steps:
            cells.append(_with(student.several_steps, student.several_steps_ci95, tenths))
            cells.append(_with(student.num_steps, student.num_steps_ci95, lambda number: f"{number:.2f}"))
        if speed:
            cells += [_number(variant.tokens_per_s), _latency(variant), _number(variant.num_parameters)]
        rows.append((variant.name, cells))
    similarity = " It is likeness to a reference, not quality." if first.metric.similarity else ""
    note = f"Score: {first.metric.name}, on {first.models['student'].n:,} prompts.{similarity}"
    if result.seeds > 1:
        note += " Single trainings: " + "; ".join(
            f"{v.name} {', '.join(map(tenths, _on(v, prompts).by_seed))}" for v in result.variants
        )
    return f"<h2>{shown(prompts[:1].upper() + prompts[1:])}</h2>{_html_table(prompts, titles, rows)}{_small(note)}"


def _score(each: OnPrompts, model: str) -> str:
    found = each.models.get(model)
    return DASH if found is None else _with(found.score, found.ci95, tenths)


def _with(value: float | None, ci95: Interval | None, show: Callable[[float], str]) -> str:
    if value is None:
        return DASH
    return f"{show(value)} [{show(ci95[0])} to {show(ci95[1])}]" if ci95 else show(value)


def _number(value: float | None) -> str:
    return DASH if value is None else count(value)


def _latency(variant: VariantResult) -> str:
    if variant.latency_p50_s is None:
        return DASH
    p95 = DASH if variant.latency_p95_s is None else seconds_text(variant.latency_p95_s)
    return f"{seconds_text(variant.latency_p50_s)} / {p95}"


def _work(result: ExperimentResult) -> str:
    """Training and the teacher's work, variant by variant."""
    titles = [result.axis, "Training rows", "Steps", "Training", "Validation loss"]
    asked = any(variant.teacher for variant in result.variants)
    titles += ["Teacher's answers", "Their tokens", "Spent here", "All of them alone", "Paid"] if asked else []
    rows = []
    for variant in result.variants:
        losses = f"{variant.losses[0]:.3f} → {variant.losses[1]:.3f}" if variant.losses else DASH
        cells = [f"{variant.rows:,}", f"{variant.steps:,}", duration(variant.train_seconds), losses]
        if asked:
            work = variant.teacher
            cells += (
                [
                    f"{work.answers:,}", f"{work.tokens:,}", seconds_text(work.seconds),
                    DASH if work.seconds_alone is None else seconds_text(work.seconds_alone),
                    DASH if work.cost is None else money(work.cost),
                ]
                if work
                else ["0", "0", "0", "0", DASH]
            )  # fmt: skip
        rows.append((variant.name, cells))
    note = (
        "Spent here: seconds of the teacher in this experiment; what an earlier variant or run paid for takes none. All of "
        "them alone: what generating all of these answers takes at the teacher's measured speed in batches."
    )
    return f"<h2>{TOOK}</h2>{_html_table(TOOK, titles, rows)}{_small(note) if asked else ''}"


def _failures(result: ExperimentResult) -> str:
    parts = []
    for variant in result.variants:
        for each in variant.failures:
            rows = []
            for kind in dict.fromkeys([*KINDS, *each.kinds]):
                number = each.kinds.get(kind, 0)
                ends = proportion(number, each.answers) if each.answers else (0.0, 1.0)
                rows.append(
                    (
                        kind,
                        [
                            f"{number:,}",
                            f"{tenths(number / max(1, each.answers))} [{tenths(ends[0])} to {tenths(ends[1])}]",
                        ],
                    )
                )
            whose = f"{variant.name}, " if len(result.variants) > 1 else ""
            title = f"{whose}{each.prompts}: {each.failed:,} of {each.answers:,} answers failed"
            parts.append(
                f'<h3 class="after">{shown(title)}</h3>{_html_table(title, ["Kind", "Answers", "Share of all"], rows)}'
            )
            parts.append(
                _small(f"Sorted by {each.judged_by}. An answer may be of several kinds; failed.jsonl has them all.")
            )
    text = "Rules sort by words, not by meaning: they find candidates to read. See distill_lab/evaluation/failures.py."
    return f"<h2>How the student fails</h2>{_small(text)}{''.join(parts)}" if parts else ""


def _differences(result: ExperimentResult) -> str:
    rows = []
    for each in result.differences:
        mark = badge("found", "good" if each.value > 0 else "bad", sign=False) if each.found else badge("not found", "")
        cells = [
            shown(each.prompts),
            shown(each.measure),
            difference_text(each),
            p_value_text(each.p_value),
            str(each.n),
            mark,
        ]
        rows.append((f"{each.second} against {each.first}", cells))
    titles = ["Comparison", "Prompts", "Measure", "Difference [95%]", "p", "n", ""]
    found = _html_table(DIFFERENCES, titles, rows, escaped=True)
    return f"<h2>{DIFFERENCES}</h2>{found}{_small(SMALL)}" if rows else ""


def _examples(examples: Sequence[Example]) -> str:
    parts = [
        f'<article class="card example"><div class="top"><span class="small muted">{shown(each.prompts)}, {shown(each.id)}: '
        f'{shown(each.why)}</span></div><p class="text-block question" dir="auto">{_cut(each.question)}</p>'
        + (
            f'<p class="gold"><span class="muted">Gold answer or reference:</span> <bdi>{_cut(each.gold)}</bdi></p>'
            if each.gold
            else ""
        )
        + '<div class="answers">'
        + "".join(
            f'<div class="answer"><div class="top"><h3>{shown(answer.label)}</h3>{badge(f"{answer.score:.2f}", "")}</div>'
            f'<p class="text-block" dir="auto">{_cut(answer.text) or "(empty)"}</p>'
            f'<p class="small muted after">{shown(answer.note)}</p></div>'
            for answer in each.answers
        )
        + "</div></article>"
        for each in examples
    ]
    return f"<h2>Examples</h2>{_small('Chosen by a rule, which each example names.')}{''.join(parts)}" if parts else ""


def _setup(result: ExperimentResult) -> str:
    lines = "".join(f"<p>{shown(line)}</p>" for line in result.setup)
    notes = "".join(f"<li>{shown(_sentence(line))}</li>" for line in result.notes)
    rows = [
        (variant.name, [shown(variant.about) or DASH, "<br>".join(map(_link, variant.runs))])
        for variant in result.variants
    ]
    variants = _html_table("Setup", [result.axis, "Its settings", "Runs"], rows, escaped=True)
    return f"<h2>Setup</h2>{lines}{variants}<h2>What limits this</h2><ul>{notes}</ul>"


def _link(run: str) -> str:
    return f'<a href="../{shown(run)}/{REPORT}">{shown(run)}</a>'


def _html_table(
    label: str, titles: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], *, escaped: bool = False
) -> str:
    """label: what the table shows. rows: a heading and cells; escaped: the cells are HTML already."""
    body = (
        row_head(shown(name)) + "".join(f"<td>{cell if escaped else shown(cell)}</td>" for cell in cells)
        for name, cells in rows
    )
    return table(label, (head(title[:1].upper() + title[1:]) for title in titles), body)


def _small(text: str) -> str:
    return f'<p class="small muted after">{shown(text)}</p>'


def _cut(text: str) -> str:
    text = text.strip()
    return shown(text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} […]")
