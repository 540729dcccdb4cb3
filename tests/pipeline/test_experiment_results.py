"""The result of an experiment from graded answers alone: what is compared, counted and kept; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.grading.graders import metric_of
from distill_lab.pipeline.experiments.results import Graded, check_comparable
from tests.helpers import eval_row


def graded(path: Path, scores: Sequence[float], *, grader: str = "exact") -> Graded:
    """A variant's graded answers, the student's alone."""
    write_jsonl(path, [eval_row(f"p{number}", score) for number, score in enumerate(scores)])
    return Graded({"student": path}, metric_of(grader), (0.5,), 0, "")


def test_variants_that_are_graded_differently_are_not_compared(tmp_path: Path) -> None:
    first = graded(tmp_path / "a.jsonl", [0, 1])
    check_comparable({"a": {"test": first}, "b": {"test": graded(tmp_path / "b.jsonl", [1, 1])}})
    other = graded(tmp_path / "c.jsonl", [1, 1], grader="overlap")
    with pytest.raises(UserError, match=r"graded differently on the prompts test \(a by exact match, b by ROUGE-L"):
        check_comparable({"a": {"test": first}, "b": {"test": other}})
