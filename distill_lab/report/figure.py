"""The result as a picture: summary.json -> SVG text, no other files and no fonts needed, for light and dark.

    Path("result.svg").write_text(result_svg(read_summary(Path("runs/demo/system1/summary.json"))))

Left: score of teacher, base student and student with 95% intervals. Right: how many times as fast as the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import tenths
from distill_lab.formatting import times
from distill_lab.report.chart import PANEL_WIDTH, Panel, round_step
from distill_lab.report.result_text import ends_text

LABELS = {"teacher": "Teacher", "base": "Base student", "student": "Student"}
"""How the models are called, in the order they are shown."""

ROW_HEIGHT, TOP = 46, 52
PLOT_LEFT, PLOT_RIGHT = 100, 288

STYLE = """
.fig{--ink:#17202b;--muted:#566373;--grid:#dfe4ea;--card:#fff;--teacher:#4f5f75;--base:#8492a4;--student:#0b7a70;
--goal:#b45309;--one:#0b7a70;--two:#b45309;--three:#5b4fc9;--four:#b0306a;--five:#2f6db5;--six:#5f6b12;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.fig .card{fill:var(--card);stroke:var(--grid)}.fig text{fill:var(--ink);font-size:13px}
.fig .title{font-size:14px;font-weight:650}.fig .headline{font-size:17px;font-weight:650}
.fig .value{font-weight:650;text-anchor:end;font-variant-numeric:tabular-nums}
.fig .note{fill:var(--muted);font-size:11px}.fig .note.end{text-anchor:end}.fig .note.mid{text-anchor:middle}
.fig .grid{stroke:var(--grid)}.fig .teacher{fill:var(--teacher)}.fig .base{fill:var(--base)}
.fig .student{fill:var(--student)}.fig .interval{stroke:var(--ink);stroke-width:1.6}
.fig .halo{stroke:var(--card);stroke-width:5;opacity:.75}
.fig line.goal{stroke:var(--goal);stroke-width:1.5;stroke-dasharray:4 3}.fig .line{fill:none;stroke-width:2;
stroke-linejoin:round}.fig .line.student,.fig .line.one{stroke:var(--student)}.fig .line.base{stroke:var(--base);
stroke-dasharray:2 3}.fig .line.teacher{stroke:var(--teacher);stroke-dasharray:8 3}.fig .line.goal,.fig .line.two{
stroke:var(--goal);stroke-dasharray:6 3}.fig .line.three{stroke:var(--three);stroke-dasharray:2 3}.fig .line.four{
stroke:var(--four);stroke-dasharray:9 3 2 3}.fig .line.five{stroke:var(--five);stroke-dasharray:12 3}.fig .line.six{
stroke:var(--six);stroke-dasharray:4 2}.fig .dot.one{fill:var(--one)}.fig .dot.two,.fig .dot.goal{fill:var(--two)}
.fig .dot.three{fill:var(--three)}.fig .dot.four{fill:var(--four)}.fig .dot.five{fill:var(--five)}.fig .dot.six{
fill:var(--six)}.fig .faint{fill-opacity:.4}.fig .note.goal-text{fill:var(--goal)}
@media(prefers-color-scheme:dark){.fig{--ink:#e7ecf2;--muted:#9dabba;--grid:#2b3643;--card:#151c24;--teacher:#aab7c7;
--base:#6b7b8e;--student:#2bb5a5;--goal:#f0a84a;--one:#2bb5a5;--two:#f0a84a;--three:#a79dff;--four:#f283b4;
--five:#7db2f0;--six:#c3cf5a}}
"""
"""Classes of every figure; a page that shows figures inline holds this once."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a panel."""

    kind: str
    """teacher, base or student: the color."""
    label: str
    value: float
    text: str
    """The value as shown."""
    note: str = ""
    """Small print under the value."""
    sublabel: str = ""
    interval: tuple[float, float] | None = None


def result_svg(summary: Summary) -> str:
    """A stand-alone SVG document of the whole result."""
    panels = [panel for panel in (score_panel(summary), speed_panel(summary)) if panel]
    height = 66 + max((panel_height for _, panel_height in panels), default=20)
    width = 40 + PANEL_WIDTH * 2 + 32 if len(panels) != 1 else 40 + PANEL_WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'class="fig" role="img" aria-label="{escape(headline(summary))}"><style>{STYLE}</style>',
        f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        f'<text class="headline" x="20" y="36">{escape(headline(summary, short=len(panels) == 1))}</text>',
    ]
    for number, (panel, _) in enumerate(panels):
        parts.append(f'<g transform="translate({20 + number * (PANEL_WIDTH + 32)} 52)">{panel}</g>')
    return "".join(parts) + "</svg>\n"


def panel_svg(panel: Panel, label: str) -> str:
    """A panel as a stand-alone SVG document."""
    body, height = panel
    width = PANEL_WIDTH + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 30}" width="{width}" '
        f'height="{height + 30}" class="fig" role="img" aria-label="{escape(label)}"><style>{STYLE}</style>'
        f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height + 29}" rx="10"/>'
        f'<g transform="translate(20 15)">{body}</g></svg>\n'
    )


def inline_svg(panel: Panel, label: str) -> str:
    """A panel as an `<svg>` element for a page that holds STYLE, as wide as its place allows."""
    body, height = panel
    box = f"0 0 {PANEL_WIDTH} {height}"
    return f'<svg class="fig" viewBox="{box}" role="img" aria-label="{escape(label)}">{body}</svg>'


def headline(summary: Summary, *, short: bool = False) -> str:
    """The result in one sentence. short: the first half of it."""
    text, speedup = summary.result, summary.speedup
    if speedup is not None and not short:
        goes_on = text.startswith("The student ") and ":" not in text
        text += f"{' and' if goes_on else '; the student'} answers {times(speedup)} as fast"
    return text + "."


def score_panel(summary: Summary) -> Panel | None:
    """SVG elements and height of the scores with their intervals; None if there are no scores."""
    bars = []
    for kind, label in LABELS.items():
        model = summary.models.get(kind)
        if model and model.score is not None:
            note = ends_text(model.ci95, lambda end: f"{100 * end:.1f}") if model.ci95 else ""
            bars.append(Bar(kind, label, model.score, tenths(model.score), note, interval=model.ci95))
    if not bars:
        return None
    goal = (summary.goal_score, "goal: 90% of the teacher") if summary.goal_score is not None else None
    metric = summary.metric.short if summary.metric else "score"
    ticks = [(tick / 4, f"{25 * tick}%") for tick in range(5)]
    title = f"{metric[:1].upper()}{metric[1:]}, {summary.n:,} prompts, 95% intervals"
    return _panel(title, bars, ticks=ticks, most=1.0, goal=goal)


def speed_panel(summary: Summary) -> Panel | None:
    """SVG elements and height of the speed against the teacher's; None if it was not measured."""
    ways = [
        ("in batches", summary.speedup_batched, summary.speedup_batched_ci95),
        ("one at a time", summary.speedup_single, summary.speedup_single_ci95),
    ]
    measured = [(way, value, interval) for way, value, interval in ways if value is not None]
    if not measured:
        return None
    teacher = summary.models.get("teacher")
    rate = f"{count(teacher.tokens_per_s)} tokens/s" if teacher and teacher.tokens_per_s is not None else ""
    bars = [Bar("teacher", "Teacher", 1.0, "1×", rate)]
    for way, value, interval in measured:
        note = ends_text(interval, times) if interval else "no interval"
        bars.append(Bar("student", "Student", value, times(value), note, sublabel=way, interval=interval))
    # A very wide interval leaves the plot rather than make the bars short.
    ends = [min(interval[1], 2 * value) if interval else value for _, value, interval in measured]
    most = max(3.5, 1.08 * max(ends))
    step = round_step(most)
    ticks = [(tick * step, f"{tick * step:g}×") for tick in range(int(most / step) + 1)]
    return _panel("Answers/s, teacher = 1×, 95% intervals", bars, ticks=ticks, most=most, goal=(3.0, "goal: 3×"))


def _panel(
    title: str, bars: Sequence[Bar], *, ticks: Sequence[tuple[float, str]], most: float, goal: tuple[float, str] | None
) -> Panel:
    bottom = TOP + ROW_HEIGHT * len(bars)

    def x(value: float) -> float:
        return round(PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * min(max(value / most, 0.0), 1.0), 1)

    parts = [f'<text class="title" x="0" y="20">{escape(title)}</text>']
    for value, text in ticks:
        parts.append(f'<line class="grid" x1="{x(value)}" y1="{TOP - 4}" x2="{x(value)}" y2="{bottom}"/>')
        parts.append(f'<text class="note mid" x="{x(value)}" y="{bottom + 16}">{text}</text>')
    for number, bar in enumerate(bars):
        middle = TOP + ROW_HEIGHT * number + ROW_HEIGHT // 2 - 2
        width = round(x(bar.value) - PLOT_LEFT, 1)
        parts.append(f'<rect class="{bar.kind}" x="{PLOT_LEFT}" y="{middle - 10}" width="{width}" height="20" rx="2"/>')
        if bar.interval:
            low, high = x(bar.interval[0]), x(bar.interval[1])
            path = f"M{low} {middle}H{high}M{low} {middle - 5}V{middle + 5}M{high} {middle - 5}V{middle + 5}"
            parts.append(f'<path class="halo" d="{path}"/><path class="interval" d="{path}"/>')
        label = middle + (-2 if bar.sublabel else 4)
        parts.append(f'<text x="0" y="{label}">{escape(bar.label)}</text>')
        parts.append(
            f'<text class="note" x="0" y="{middle + 13}">{escape(bar.sublabel)}</text>' if bar.sublabel else ""
        )
        parts.append(f'<text class="value" x="{PANEL_WIDTH}" y="{middle + (-1 if bar.note else 4)}">{bar.text}</text>')
        parts.append(
            f'<text class="note end" x="{PANEL_WIDTH}" y="{middle + 13}">{bar.note}</text>' if bar.note else ""
        )
    if goal:
        place = x(goal[0])
        # The text is centred on its line, and kept within the panel.
        half = 3.1 * len(goal[1])
        centre = min(max(place, PLOT_LEFT + half), PANEL_WIDTH - half)
        parts.append(f'<line class="goal" x1="{place}" y1="{TOP - 4}" x2="{place}" y2="{bottom}"/>')
        parts.append(f'<text class="note mid goal-text" x="{centre:.1f}" y="{TOP - 10}">{escape(goal[1])}</text>')
    return "".join(parts), bottom + 26


def count(number: float) -> str:
    """A count for people: 950, 9,120, 1.85M, 7.6B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
