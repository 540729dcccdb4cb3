"""Draw the package from its imports: distill_lab/ and the floors of tests/test_layers.py -> docs/architecture.svg.

    python -m scripts.architecture

The rooms that make up the way of the data climb as a staircase from left to right, and what each hands to the next is
written on its step. All other rooms are bars, on the floor they belong to. A thin line leads from a room down to one that
it imports. An import that also follows from two others is left out, so that each line stays visible.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "distill_lab"
PICTURE = ROOT / "docs" / "architecture.svg"
GROUND = "ground"
STAIRS = {
    "data": "prompts.jsonl",
    "generation": "completions.jsonl",
    "grading": "graded.jsonl",
    "training_data": "train.jsonl",
    "train": "student/",
    "evaluation": "summary.json",
    "report": "",
}
"""The rooms of the way of the data, and what each hands to the next."""
LEFT, TOP, COLUMN, ROW, WIDE, HIGH = 116, 64, 118, 44, 104, 26
"""Pixels: margins, distance of columns and rows, size of a box on the stairs."""


def floors() -> list[list[str]]:
    """The rooms of every floor from the ground up, as tests/test_layers.py lists them."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return [rooms.split() for rooms in ast.literal_eval(node.value)]
    raise AssertionError("tests/test_layers.py has no FLOORS")


def imports(package: Path, ground: set[str]) -> dict[str, set[str]]:
    """Room -> the rooms that its files import, those of the ground floor as one."""
    found: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        targets = found.setdefault(GROUND if room in ground else room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            rooms = {name.split(".")[1] for name in names if name.startswith("distill_lab.")} - {"__version__"}
            targets |= {GROUND if target in ground else target for target in rooms}
    return {room: targets - {room} for room, targets in found.items()}


def reduced(graph: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """The graph without edges that follow from others; it has no circles."""

    def below(room: str) -> set[str]:
        return graph[room].union(*(below(target) for target in graph[room]))

    return {
        room: sorted(
            target for target in targets if not any(target in below(other) for other in targets if other != target)
        )
        for room, targets in sorted(graph.items())
    }


def draw() -> str:
    """The picture, as SVG."""
    levels = floors()
    ground, upper = levels[0], levels[1:]
    num_rows, right = len(upper) + 1, LEFT + COLUMN * len(STAIRS)
    box: dict[str, tuple[float, float, float]] = {}  # room -> left edge, top edge, width
    for number, rooms in enumerate([[GROUND], *upper]):
        y = TOP + ROW * (num_rows - 1 - number)
        bars = [room for room in rooms if room not in STAIRS]
        width = (right - LEFT + COLUMN - WIDE) / max(1, len(bars)) - (COLUMN - WIDE)
        for place, room in enumerate(bars):
            box[room] = (LEFT + place * (width + COLUMN - WIDE), y, width)
        for room in rooms:
            if room in STAIRS:
                box[room] = (LEFT + COLUMN * list(STAIRS).index(room), y, WIDE)
    lines, arrows, boxes = [], [], []
    used = dict.fromkeys(box, 0)
    for room, targets in reduced(imports(PACKAGE, set(ground))).items():
        for target in targets:
            lines.append(_line(room, target, box, used))
    names = list(STAIRS)
    for room, after in itertools.pairwise(names):
        (x, y, _), (x_after, y_after, _) = box[room], box[after]
        middle = y_after + HIGH / 2
        arrows.append(f'<path class="way" d="M{x + 22} {y} V{middle} H{x_after - 2}"/>')
        arrows.append(f'<text class="file" x="{x + 16}" y="{middle + 4}">{STAIRS[room]}</text>')
    for room, (x, y, width) in box.items():
        kind = "stair" if room in STAIRS else "bar"
        name = f"ground: {', '.join(ground)}" if room == GROUND else room
        boxes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{HIGH}" rx="4"/>')
        small = ' class="small"' if room == GROUND else ""
        boxes.append(f'<text{small} x="{x + width / 2:g}" y="{y + HIGH / 2 + 4.5:g}">{escape(name)}</text>')
    width, height = right + 20, TOP + ROW * num_rows
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>The rooms of distill_lab: the way of the data as a staircase, and what imports what</title>",
            STYLE,
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<text class="head" x="16" y="26">The way of the data climbs from left to right; imports point down.</text>',
            '<text class="note" x="16" y="46">Thick: what a room hands to the next. Thin: a room imports another.</text>',
            *lines,
            *boxes,
            *arrows,
            "</svg>",
            "",
        ]
    )


def _line(room: str, target: str, box: Mapping[str, tuple[float, float, float]], used: dict[str, int]) -> str:
    """A line from `room` down to `target`: straight where one is above the other, with a corner between two steps."""
    (x, y, width), (x_target, y_target, width_target) = box[room], box[target]
    if room in STAIRS and target in STAIRS:
        start = x + 40 + 14 * used[room]
        used[room] += 1
        return f'<path class="import" d="M{start:g} {y + HIGH} V{y_target + HIGH / 2} H{x_target + WIDE + 2}"/>'
    narrow = target if width_target <= width else room
    left, _, room_there = box[narrow]
    between_bars = room not in STAIRS and target not in STAIRS
    counted, apart = (GROUND, 26) if between_bars else (narrow, 14)
    start = left + min(room_there - 8, 58 + apart * used[counted])
    used[counted] += 1
    return f'<path class="import" d="M{start:g} {y + HIGH} V{y_target - 2}"/>'


STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1c2733; text-anchor: middle }
.small { font-size: 11px } .head { font-weight: 600; font-size: 15px; text-anchor: start }
.note { font-size: 12px; fill: #51606f; text-anchor: start } .file { font-size: 11.5px; fill: #0b5d8a; text-anchor: end }
.bar { fill: #eef1f4; stroke: #9aa7b4 } .stair { fill: #d9ecf7; stroke: #0b5d8a; stroke-width: 1.5 }
.import { fill: none; stroke: #8795a3; stroke-width: 1; marker-end: url(#down) }
.way { fill: none; stroke: #0b5d8a; stroke-width: 2.5; marker-end: url(#on) }
</style>
<defs>
<marker id="down" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0 L6 3 L0 6 z" fill="#8795a3"/></marker>
<marker id="on" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="4" markerHeight="4" orient="auto">
<path d="M0 0 L6 3 L0 6 z" fill="#0b5d8a"/></marker>
</defs>"""


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)
