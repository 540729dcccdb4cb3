"""docs/graders.md: each row of its table of examples gets the grade it says, and it names every grader and status."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

import pytest

from distill_lab.grading.graders import load_grader, names
from distill_lab.types import Completion, Grade, Prompt
from scripts.architecture import ROOT

TEXT = (ROOT / "docs" / "graders.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| (numeric|math|exact|label)([^|]*) \| `(.*?)` \| `(.*?)` \| (right|wrong|u) \|$", TEXT, re.MULTILINE
)


@pytest.mark.parametrize(("name", "labels", "gold", "content", "grade"), ROWS)
def test_examples(name: str, labels: str, gold: str, content: str, grade: str) -> None:
    if name == "math":
        pytest.importorskip("math_verify")
    meta = {"labels": [label.strip() for label in labels.split(",")]} if labels.strip() else {}
    found = load_grader(name)(Prompt("p", [], gold, meta), Completion("p", 0, content, None, "stop", 1))
    assert (found.status, found.score) == (("unparseable", 0) if grade == "u" else ("ok", float(grade == "right")))


def test_every_row_is_run_and_every_grader_and_status_is_named() -> None:
    table = TEXT.partition("| grader | gold |")[2].partition("\n\n")[0]
    assert len(ROWS) == len(table.splitlines()) - 2 > 30
    assert all(f"| `{name}" in TEXT for name in names())
    assert all(f"| `{status}` |" in TEXT for status in get_args(get_type_hints(Grade)["status"]))
