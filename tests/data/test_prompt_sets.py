"""The lab's own test prompts: as many as promised, each with a reference, gold answers that their calculations give."""

from __future__ import annotations

import ast
import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_lab.config import DataConfig
from distill_lab.data.contamination import find_overlaps
from distill_lab.data.records import Records, write_prompts
from distill_lab.data.sources import PROMPT_SETS, open_source
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.grading.choose_grader import final_answer_grader, has_references
from distill_lab.types import Record

OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def records(name: str) -> list[Record]:
    return list(Records(DataConfig(path=f"prompts:{name}")))


def calculated(text: str) -> float:
    """The value of an arithmetic expression."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant), ast.dump(node)
        assert isinstance(node.value, (int, float))
        return node.value

    return value(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("instructions", {"definition": 10, "coding": 10, "explanation": 10}),
        ("reasoning", {"arithmetic": 5, "word problem": 7, "logic": 8}),
        ("outside", {"code": 7, "language": 7, "domain": 6}),
    ],
)
def test_a_set_has_its_prompts_and_every_prompt_a_reference(name: str, kinds: dict[str, int]) -> None:
    found = records(name)
    assert Counter(record.prompt.meta["kind"] for record in found) == kinds
    assert len({record.prompt.messages[-1]["content"] for record in found}) == len(found)
    for record in found:
        assert record.prompt.answer or (record.completion and record.completion[0]["content"].strip())


def test_gold_answers_are_what_their_calculations_give() -> None:
    for record in records("reasoning"):
        assert record.prompt.answer is not None
        assert calculated(record.prompt.meta["check"]) == pytest.approx(float(record.prompt.answer)), record


def test_the_kinds_outside_are_the_slices_of_experiment_g() -> None:
    for split, kind in (("train[:7]", "code"), ("train[7:14]", "language"), ("train[14:]", "domain")):
        found = list(Records(DataConfig(path="prompts:outside", split=split)))
        assert {record.prompt.meta["kind"] for record in found} == {kind}


def test_the_reasoning_questions_are_graded_as_numbers_and_open_ones_have_references(tmp_path: Path) -> None:
    for name in ("instructions", "reasoning", "outside"):
        write_prompts(DataConfig(path=f"prompts:{name}"), tmp_path / f"{name}.jsonl")
        assert has_references(tmp_path / f"{name}.jsonl")
    assert final_answer_grader(tmp_path / "reasoning.jsonl") == "numeric"


def test_no_prompt_of_a_set_overlaps_with_one_of_another(tmp_path: Path) -> None:
    names = sorted(path.stem for path in PROMPT_SETS.glob("*.jsonl"))
    for name in names:
        write_prompts(DataConfig(path=f"prompts:{name}"), tmp_path / f"{name}.jsonl")
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            find_overlaps(tmp_path / f"{first}.jsonl", tmp_path / f"{second}.jsonl", tmp_path / "overlap.jsonl")
            assert list(read_jsonl(tmp_path / "overlap.jsonl")) == []


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="prompts:instructions, prompts:outside, prompts:reasoning"):
        open_source("prompts:none")
