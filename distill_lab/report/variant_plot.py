"""Plots of an experiment's variants: points with 95% intervals -> SVG text for a page that holds figure.STYLE.

    line_plot("Exact match", points, lines={"Teacher": 0.98})      variants in order, from left to right
    dot_plot("Exact match", points, lines={"Teacher": 0.98})       variants below one another

Values are shares from 0 to 1. Every figure is also in the table next to the plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from distill_lab.evaluation.intervals import Interval
from distill_lab.evaluation.verdict import tenths
from distill_lab.report.chart import Reference, Row, interval_panel
from distill_lab.report.figure import inline_svg

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 370, 40, 214
DOT_LEFT = 150
"""Room for the names of variants that are below one another."""
SHARES = [(tick / 4, f"{25 * tick}%") for tick in range(5)]
MAX_LABEL = 20
"""Characters of a variant's name in a plot."""
REFERENCES = {"Teacher": "teacher", "Base student": "base"}
"""Lines to compare with, and their class."""


@dataclass(frozen=True, slots=True)
class Point:
    """A variant in a plot."""

    name: str
    x: float | None
    """Its place on the axis; None: the next one."""
    y: float
    ci95: Interval
    others: tuple[float, ...] = ()
    """The values of single trainings, if there are several."""


def line_plot(title: str, points: Sequence[Point], *, axis: str, lines: Mapping[str, float]) -> str:
    """Variants from left to right, connected; the axis is logarithmic if the values span a factor of ten or more."""
    places = _places([point.x for point in points])
    parts = [_text(0, 18, title, "title"), *_grid()]
    for name, value in lines.items():
        y = _y(value)
        parts.append(f'<line class="line-{REFERENCES[name]}" x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}"/>')
        parts.append(_text(RIGHT + 6, y + 4, f"{name} {tenths(value)}", "note"))
    steps = " ".join(f"{x},{_y(point.y)}" for x, point in zip(places, points, strict=True))
    parts.append(f'<polyline class="trend" points="{steps}"/>')
    for x, point in zip(places, points, strict=True):
        low, high = _y(point.ci95[0]), _y(point.ci95[1])
        parts.append(f'<path class="interval" d="M{x} {low}V{high}M{x - 4} {low}H{x + 4}M{x - 4} {high}H{x + 4}"/>')
        parts += [f'<circle class="one" cx="{x}" cy="{_y(each)}" r="2.5"/>' for each in point.others]
        parts.append(f'<circle class="student" cx="{x}" cy="{_y(point.y)}" r="5"/>')
        parts.append(_text(x, min(high, _y(point.y)) - 7, tenths(point.y), "note mid"))
        parts.append(_text(x, BOTTOM + 18, _short(point.name), "note mid"))
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 38, axis, "note mid"))
    return _svg(parts, HEIGHT, _aria(title, points))


def dot_plot(title: str, points: Sequence[Point], *, lines: Mapping[str, float]) -> str:
    """Variants below one another, each a point with its interval."""
    rows = [Row(each.name, "student", each.y, each.ci95, tenths(each.y), dots=each.others) for each in points]
    references = [
        Reference(f"{name} {tenths(value)}", value, f"line-{REFERENCES[name]}") for name, value in lines.items()
    ]
    panel = interval_panel(title, rows, ticks=SHARES, references=references, left=DOT_LEFT)
    return inline_svg(panel, _aria(title, points)) if panel else ""


PLOT_STYLE = """
.fig .trend{fill:none;stroke:var(--student);stroke-width:2}.fig .one{fill:var(--student);opacity:.45}
.fig .line-teacher{stroke:var(--teacher);stroke-width:1.5;stroke-dasharray:5 3}
.fig .line-base{stroke:var(--muted);stroke-width:1.5;stroke-dasharray:2 3}
"""


def _grid() -> list[str]:
    parts = []
    for tick in range(5):
        y = _y(tick / 4)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y}" x2="{RIGHT}" y2="{y}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{25 * tick}%", "note end"))
    return parts


def _places(values: Sequence[float | None]) -> list[float]:
    """Places of the variants from left to right; evenly if one of them has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(set(known)) < len(known) or len(known) < 2:
        at = [place / max(1, len(values) - 1) for place in range(len(values))]
    else:
        if min(known) > 0 and max(known) / min(known) >= 10:
            known = [math.log(value) for value in known]
        low, high = min(known), max(known)
        at = [(value - low) / (high - low) for value in known]
    return [round(LEFT + 34 + (RIGHT - LEFT - 68) * each, 1) for each in at]


def _y(value: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * min(max(value, 0.0), 1.0), 1)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def _aria(title: str, points: Sequence[Point]) -> str:
    return f"{title}: " + ", ".join(f"{point.name} {tenths(point.y)}" for point in points)


def _svg(parts: Sequence[str], height: int, label: str) -> str:
    return f'<svg class="fig" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
