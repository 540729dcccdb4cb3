"""Plots as SVG elements: lines over steps, values with intervals in rows, and dots in rows. Numbers in, `Panel`s out.

    line_panel("Loss", [Line("training", "one", points)], x_title="step")
    interval_panel("Score", [Row("runs/a", "one", 0.8, (0.7, 0.9), "80.0%")], ticks=shares)

A panel is (elements, height) in a drawing PANEL_WIDTH wide; `figure.inline_svg` puts it on a page, `figure.panel_svg` in a
file. A number that is not finite breaks a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from distill_lab.evaluation.intervals import Interval
from distill_lab.formatting import shown

PANEL_WIDTH = 380
LEFT, RIGHT, TOP, HEIGHT = 46, 372, 52, 150
"""Of the plot of lines, in a drawing PANEL_WIDTH wide."""
MAX_POINTS = 600
"""Of a line; of longer ones, the lowest and the highest value of each stretch are drawn."""
ROW = 34
Panel = tuple[str, int]
"""SVG elements, and the height they take."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    name: str
    kind: str
    """Its class in the style sheet: the color and the dashes."""
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Row:
    """One value, or several dots, with a name at the left."""

    name: str
    kind: str
    value: float | None
    interval: Interval | None
    text: str
    """The value as shown at the right."""
    dots: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """A line to compare the rows with."""

    text: str
    value: float
    kind: str
    """Its class in the style sheet."""


def line_panel(title: str, lines: Sequence[Line], *, x_title: str, from_zero: bool = False) -> Panel | None:
    """Curves over one pair of axes, with a legend; None if there is nothing to draw."""
    lines = [line for line in lines if any(map(_finite, line.points))]
    if not lines:
        return None
    points = [point for line in lines for point in line.points if _finite(point)]
    x_end = max(x for x, _ in points) or 1.0
    low = 0.0 if from_zero else min(y for _, y in points)
    high = max(y for _, y in points)
    step = round_step((high - low) or abs(high) or 1.0)
    low = math.floor(low / step + 1e-9) * step
    high = max(math.ceil(high / step - 1e-9) * step, low + step)
    legend, top = _legend(lines)
    bottom = top + HEIGHT

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * value / x_end, 1)

    def y(value: float) -> float:
        return round(bottom - HEIGHT * (value - low) / (high - low), 1)

    parts = [f'<text class="title" x="0" y="18">{escape(title)}</text>', legend]
    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y(tick)}" x2="{RIGHT}" y2="{y(tick)}"/>')
        parts.append(f'<text class="note end" x="{LEFT - 6}" y="{y(tick) + 4}">{number_text(tick)}</text>')
    x_step = round_step(x_end)
    for number in range(int(x_end / x_step + 1e-9) + 1):
        tick = number * x_step
        parts.append(f'<text class="note mid" x="{x(tick)}" y="{bottom + 16}">{number_text(tick)}</text>')
    parts.append(f'<text class="note end" x="{RIGHT}" y="{bottom + 31}">{escape(x_title)}</text>')
    for line in lines:
        for piece in _pieces(line.points):
            if len(piece) == 1:
                parts.append(f'<circle class="dot {line.kind}" cx="{x(piece[0][0])}" cy="{y(piece[0][1])}" r="3"/>')
                continue
            path = "L".join(f"{x(each)} {y(value)}" for each, value in thinned(piece))
            parts.append(f'<path class="line {line.kind}" d="M{path}"/>')
    return "".join(parts), bottom + 38


def interval_panel(
    title: str,
    rows: Sequence[Row],
    *,
    ticks: Sequence[tuple[float, str]],
    goal: float | None = None,
    references: Sequence[Reference] = (),
    left: int = 120,
) -> Panel | None:
    """A row for each value: a dot with its interval, or several dots; None without rows.

    ticks: place and text; the first and the last are the ends of the axis. goal: where a dashed line is. references: other
    lines, whose names are below the axis. left: the room for the names.
    """
    if not rows:
        return None
    start, end, right, top = ticks[0][0], ticks[-1][0], PANEL_WIDTH - 62, 34
    bottom = top + ROW * len(rows)

    def x(value: float) -> float:
        share = (value - start) / (end - start)
        return round(left + (right - left) * min(max(share, 0.0), 1.0), 1)

    parts = [f'<text class="title" x="0" y="18">{escape(title)}</text>']
    for value, text in ticks:
        parts.append(f'<line class="grid" x1="{x(value)}" y1="{top}" x2="{x(value)}" y2="{bottom}"/>')
        parts.append(f'<text class="note mid" x="{x(value)}" y="{bottom + 16}">{escape(text)}</text>')
    if goal is not None:
        parts.append(f'<line class="goal" x1="{x(goal)}" y1="{top}" x2="{x(goal)}" y2="{bottom}"/>')
    for place, each in enumerate(references):
        at = x(each.value)
        parts.append(f'<line class="{each.kind}" x1="{at}" y1="{top}" x2="{at}" y2="{bottom}"/>')
        parts.append(f'<text class="note" x="{left + place * 130}" y="{bottom + 34}">{escape(each.text)}</text>')
    for number, row in enumerate(rows):
        middle = top + ROW * number + ROW // 2
        parts.append(f'<text x="0" y="{middle + 4}">{shown(shortened(row.name, left // 8))}</text>')
        if row.interval:
            low, high = x(row.interval[0]), x(row.interval[1])
            ends = f"M{low} {middle - 5}V{middle + 5}M{high} {middle - 5}V{middle + 5}"
            parts.append(f'<path class="interval" d="M{low} {middle}H{high}{ends}"/>')
        for value in row.dots:
            parts.append(f'<circle class="dot faint {row.kind}" cx="{x(value)}" cy="{middle}" r="4"/>')
        if row.value is not None:
            parts.append(f'<circle class="dot {row.kind}" cx="{x(row.value)}" cy="{middle}" r="5"/>')
        parts.append(f'<text class="value" x="{PANEL_WIDTH}" y="{middle + 4}">{shown(row.text)}</text>')
    return "".join(parts), bottom + (42 if references else 24)


def _legend(lines: Sequence[Line]) -> tuple[str, int]:
    """Names of the lines under the title, and where the plot begins."""
    parts, x, y = [], 0, 38
    for line in lines:
        name = shortened(line.name, 44)
        width = 30 + 7 * len(name)
        if x and x + width > PANEL_WIDTH:
            x, y = 0, y + 18
        parts.append(f'<path class="line {line.kind}" d="M{x} {y - 4}h18"/>')
        parts.append(f'<text class="note" x="{x + 23}" y="{y}">{shown(name)}</text>')
        x += width
    return "".join(parts), y + TOP - 38


def shortened(name: str, num_chars: int) -> str:
    """The end of a name that is too long: paths differ there."""
    return name if len(name) <= num_chars else f"…{name[len(name) - num_chars + 1 :]}"


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _pieces(points: Sequence[Point]) -> list[list[Point]]:
    return [list(piece) for whole, piece in groupby(points, _finite) if whole]


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS + 2 points of a line: the lowest and the highest of each stretch, in their order, and both ends."""
    if len(points) <= MAX_POINTS:
        return list(points)
    stretch = math.ceil(2 * len(points) / MAX_POINTS)
    found: list[Point] = [points[0]]
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        places = {
            min(range(len(part)), key=lambda place: part[place][1]),
            max(range(len(part)), key=lambda p: part[p][1]),
        }
        found += [part[place] for place in sorted(places)]
    return [*found, points[-1]]


def round_step(reach: float) -> float:
    """A round distance between ticks (1, 2 or 5 times a power of ten) that gives four to nine of them."""
    power = 10.0 ** math.floor(math.log10(reach / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= reach / 4 * (1 + 1e-9))


def ticks_to(end: float, show: str = "{:g}") -> list[tuple[float, str]]:
    """Ticks from 0 to at least `end`."""
    step = round_step(end)
    return [(number * step, show.format(number * step)) for number in range(math.ceil(end / step - 1e-9) + 1)]


def number_text(value: float) -> str:
    """A tick's number: 0.25, 1,200, 2e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
