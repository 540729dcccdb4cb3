"""The result of an experiment from graded answers alone: what is compared, counted and kept; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from distill_lab.commands.experiment import find_recipe
from distill_lab.config import EngineConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.experiment import VariantResult
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.graders import metric_of
from distill_lab.pipeline.experiments.arms import Options, make_arms
from distill_lab.pipeline.experiments.definition import read_experiment
from distill_lab.pipeline.experiments.results import Graded, check_comparable, find_all_failures, same_rows
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


def test_failures_of_all_variants_are_in_one_file_and_bad_gold_is_not_counted(tmp_path: Path) -> None:
    found = {
        name: {"test": graded(tmp_path / f"{name}.jsonl", scores)} for name, scores in (("a", [0, 1]), ("b", [0, 0]))
    }
    bad = eval_row("bad", 0.0, grade={"score": 0.0, "answer": None, "status": "bad_gold"})
    for each in found.values():
        path = each["test"].files["student"]
        write_jsonl(path, [*read_jsonl(path), bad])
    engines = dict.fromkeys(found, EngineConfig())
    counts = find_all_failures(engines, found, tmp_path, Options(preset="tiny"), lambda note: None)
    assert {name: (each.answers, each.failed) for name, (each,) in counts.items()} == {"a": (2, 1), "b": (2, 2)}
    rows = [(row["variant"], row["id"]) for row in read_jsonl(tmp_path / "failed.jsonl")]
    assert rows == [("a", "p0"), ("b", "p0"), ("b", "p1")]


def test_variants_that_train_on_the_same_rows_are_named() -> None:
    made = make_arms(
        read_experiment("a"), Options(preset="tiny", data="mine.jsonl"), find=find_recipe, models=Path("m")
    )
    rows = [500, 730, 730]
    variants = [
        VariantResult(
            name=arm.variant.name, value=None, about="", runs=(), rows=number, steps=1, train_seconds=1.0, losses=None,
            teacher=None, num_parameters=None, tokens_per_s=None, latency_p50_s=None, latency_p95_s=None,
            latency_tokens=None, on=(),
        )
        for arm, number in zip(made, rows, strict=True)
    ]  # fmt: skip
    (line,) = same_rows(made, variants)
    assert "2,000 rows and 8,000 rows both trained on 730 rows" in line
    assert list(same_rows(made[:2], variants[:2])) == []
