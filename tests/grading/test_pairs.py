"""Pairs of gold answer and completion with the grade they must get: pairs.jsonl, one reason per pair."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill_lab.grading.graders import load_grader
from distill_lab.grading.graders.judge import read_better, read_grade
from distill_lab.types import Completion, Prompt

pytestmark = pytest.mark.slow

PAIRS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text(encoding="utf-8").splitlines()]
GROUPS = sorted({(pair["grader"], pair["reason"]) for pair in PAIRS})


def grade(pair: dict[str, Any]) -> str:
    """Right, wrong, or the status of a grade that is neither. A judge's reply is right if its verdict is the gold one."""
    if pair["grader"].startswith("judge"):
        verdict = read_grade(pair["answer"]) if pair["grader"] == "judge" else read_better(pair["answer"])
        return "unparseable" if verdict is None else "right" if str(verdict) == pair["gold"] else "wrong"
    prompt = Prompt("p-0", [], pair["gold"], {"labels": pair["labels"]} if "labels" in pair else {})
    found = load_grader(pair["grader"])(prompt, Completion("p-0", 0, pair["answer"], None, "stop", 5))
    return found.status if found.status != "ok" else "right" if found.score == 1 else "wrong"


@pytest.mark.parametrize(("grader", "reason"), GROUPS, ids=[f"{grader}: {reason}" for grader, reason in GROUPS])
def test_pairs(grader: str, reason: str) -> None:
    if grader == "math":
        pytest.importorskip("math_verify")
    pairs = [pair for pair in PAIRS if (pair["grader"], pair["reason"]) == (grader, reason)]
    grades = [(pair["gold"], pair["answer"], grade(pair)) for pair in pairs]
    assert not [row for pair, row in zip(pairs, grades, strict=True) if row[2] == "right" != pair["expected"]], (
        "false accepts"
    )
    assert not [row for pair, row in zip(pairs, grades, strict=True) if row[2] != pair["expected"]], grades


def test_the_table_is_large_and_without_double_rows() -> None:
    assert len(PAIRS) >= 400
    assert len({json.dumps(pair, sort_keys=True) for pair in PAIRS}) == len(PAIRS)
    assert min(Counter(pair["expected"] for pair in PAIRS).values()) >= 100
    assert all(pair["reason"] for pair in PAIRS)
