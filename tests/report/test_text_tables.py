"""Tables for other programs: numbers stay numbers, and no text becomes a formula, a link, markup or a command."""

from __future__ import annotations

import csv
import io
import re

import pytest

from distill_lab.report.text_tables import TextTable, csv_cell, latex_text, markdown_text
from tests.made_runs import HOSTILE

TABLE = TextTable(("run", "score", "note"), [("a|b", 0.25, None), ("=cmd()", -1, HOSTILE)])


def test_csv_reads_back_and_holds_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[:2] == [["run", "score", "note"], ["a|b", "0.25", ""]]
    assert rows[2][:2] == ["'=cmd()", "-1"]
    assert len(rows) == 3


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "=HYPERLINK(1)"])
def test_no_text_begins_like_a_formula(text: str) -> None:
    assert str(csv_cell(text)).startswith("'")


def test_numbers_are_not_text() -> None:
    assert [csv_cell(cell) for cell in (-1.5, -1, 0, None, "a -1")] == [-1.5, -1, 0, "", "a -1"]


def test_markdown_has_one_line_for_each_row() -> None:
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| run | score | note |"
    assert lines[1] == "| --- | ---: | --- |"
    assert lines[2] == r"| a\|b | 0.25 | – |"
    assert len(lines) == 4
    assert len(re.findall(r"(?<!\\)\|", lines[3])) == 4


@pytest.mark.parametrize(
    "text", [HOSTILE, "[a](http://x.y)", "<b>", "**x**", "# x", "@user", "www.x.y", "a\n\n# b", "`x`"]
)
def test_markdown_of_text_is_text(text: str) -> None:
    shown = markdown_text(text)
    assert "\n" not in shown
    assert not re.search(r"<(?!!-- -->)", shown)
    assert not re.search(r"(?<!\\)[\[\]`*_|#]", shown)
    assert not re.search(r"(?i)https?:|www\.|@\w", shown)


def test_latex_of_text_is_text() -> None:
    shown = latex_text(HOSTILE)
    assert "\\input" not in shown
    assert "\\textbackslash{}input\\{/etc\\}" in shown
    assert not re.search(r"(?<!\\)[&#%_]", shown)
    table = TABLE.latex("5% of $x$", "tab:x")
    assert r"\caption{5\% of \$x\$}" in table
    assert r"\begin{tabular}{lrl}" in table
    assert table.count(r"\\" + "\n") == 3
