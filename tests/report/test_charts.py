"""Curves and rows with intervals: drawn to scale, whole, and readable for those who do not see them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distill_lab.report.chart import (
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    Line,
    Row,
    interval_panel,
    line_panel,
    shortened,
    thinned,
    ticks_to,
)  # fmt: skip
from distill_lab.report.figure import panel_svg
from distill_lab.report.training_curves import in_words, panels, read_log, training_logs, training_section
from distill_lab.run import StageRecord
from tests.made_runs import HOSTILE, made_run, manifest, write_log

SVG = "{http://www.w3.org/2000/svg}"


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_line_is_drawn_to_scale_and_breaks_where_a_number_is_missing() -> None:
    panel = line_panel(
        "Loss", [Line("a", "one", [(0, 1.0), (5, 2.0), (6, math.nan), (7, 1.0), (10, 2.0)])], x_title="step"
    )
    assert panel is not None
    root = ElementTree.fromstring(panel_svg(panel, "words"))
    lines = [
        path
        for path in root.iter(f"{SVG}path")
        if (path.get("d") or "").startswith("M") and "L" in (path.get("d") or "")
    ]
    first, second = (points_of(line.get("d") or "") for line in lines)
    assert [x for x, _ in first] == [LEFT, LEFT + (RIGHT - LEFT) / 2]
    assert first[0][1] - first[1][1] == HEIGHT
    assert [x for x, _ in second] == [pytest.approx(LEFT + (RIGHT - LEFT) * 0.7, abs=0.1), RIGHT]


def test_nothing_to_draw_is_no_panel() -> None:
    assert line_panel("x", [], x_title="step") is None
    assert line_panel("x", [Line("a", "one", [(1, math.nan)])], x_title="step") is None
    assert interval_panel("x", [], ticks=[(0, "0"), (1, "1")]) is None


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 2e-9], [5.0], [-3.0, 4.0], [1e9, 1.0], [0.004, 0.0]])
def test_odd_numbers_can_be_drawn(values: list[float]) -> None:
    panel = line_panel("x", [Line("a", "one", list(enumerate(values)))], x_title="step")
    assert panel is not None
    assert 2 <= panel[0].count('class="grid"') <= 12
    assert "nan" not in panel[0]


def test_long_lines_keep_their_extremes() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[7] = (7.0, -9.0)
    few = thinned(points)
    assert len(few) <= MAX_POINTS + 2
    assert {points[0], points[-1], points[7], points[54_321]} <= set(few)
    assert [x for x, _ in few] == sorted(x for x, _ in few)


def test_rows_with_intervals_are_drawn_to_scale_and_names_are_text() -> None:
    rows = [Row(HOSTILE, "one", 0.5, (0.25, 0.75), "50%"), Row("b", "two", 2.0, None, "200%", dots=(0.0, 1.0))]
    panel = interval_panel("x", rows, ticks=[(0.0, "0"), (1.0, "1")], left=100)
    assert panel is not None
    root = ElementTree.fromstring(panel_svg(panel, HOSTILE.replace("\x1b", "").replace("\ud800", "")))
    dots = [(float(dot.get("cx", "nan")), dot.get("class")) for dot in root.iter(f"{SVG}circle")]
    assert dots == [(209.0, "dot one"), (100.0, "dot faint two"), (318.0, "dot faint two"), (318.0, "dot two")]
    assert not list(root.iter(f"{SVG}script"))


def test_ticks_and_names() -> None:
    assert ticks_to(1.9, "{:g} s")[-1] == (2.0, "2 s")
    assert shortened("runs/a/very/long/name", 10) == "…long/name"


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    run = made_run(tmp_path, num=4)
    [log] = training_logs(run, manifest()["stages"])
    assert list(panels(log)) == ["loss", "learning_rate"]
    assert in_words(log).startswith("80 steps, training loss 1.")
    page = training_section([log])
    assert page.count("<svg") == 2
    assert "The curves as a table" in page
    assert re.search(r"\d+ of 85 logged steps", page)


def test_the_parts_of_an_objective_are_drawn_and_a_number_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "training_log.jsonl"
    rows = [
        {"step": n, "loss": None if n == 2 else 1.0 / n, "metrics": {"kl": 0.1 * n, "ce": 1.0}} for n in range(1, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_log(path, "Training")
    assert list(panels(log)) == ["loss", "metrics"]
    assert "nan" not in panels(log)["loss"][0]


@pytest.mark.parametrize("line", ["{", "[]", '{"step": "1"}', '{"step": 1, "loss": "x"}', '{"step": 1, "metrics": 3}'])
def test_a_damaged_log_is_named_and_hides_nothing_else(line: str, tmp_path: Path) -> None:
    write_log(tmp_path / "training_log.jsonl")
    with (tmp_path / "training_log.jsonl").open("a") as file:
        file.write(line + "\n")
    log = read_log(tmp_path / "training_log.jsonl", "Training")
    assert not log.rows
    assert "training_log.jsonl" in training_section([log])


def test_rounds_have_a_log_each(tmp_path: Path) -> None:
    stages = {
        name: StageRecord(key="", at=f"{folder}student", status="done", seconds=1.0)
        for name, folder in (("student", ""), ("student 2", "iteration-2/"))
    }
    for folder in ("", "iteration-2"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_log(tmp_path / folder / "training_log.jsonl")
    logs = training_logs(tmp_path, stages)
    assert [log.title for log in logs] == ["Training of student", "Training of student 2"]
    assert logs[1].path == tmp_path / "iteration-2" / "training_log.jsonl"
