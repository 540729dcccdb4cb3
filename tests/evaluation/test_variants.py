"""Figures of variants: trainings merged, differences with intervals, examples by their rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import read_eval_rows
from distill_lab.evaluation.statistics import mcnemar, score_interval
from distill_lab.evaluation.variants import (
    MAX_STEPS,
    STEPS,
    check_same_questions,
    difference,
    merge_seeds,
    reached,
    telling_examples,
    values,
)
from distill_lab.files.jsonl import write_jsonl
from tests.helpers import eval_row


def scored(path: Path, scores: Sequence[float], **fields: object) -> Path:
    write_jsonl(path, [eval_row(f"p{number}", score, **fields) for number, score in enumerate(scores)])
    return path


def test_trainings_become_samples_of_the_same_prompts(tmp_path: Path) -> None:
    first, second = scored(tmp_path / "1.jsonl", [1, 0, 1]), scored(tmp_path / "2.jsonl", [0, 0, 1])
    merge_seeds([first, second], tmp_path / "both.jsonl")
    assert [row.sample for row in read_eval_rows(tmp_path / "both.jsonl")] == [0, 0, 0, 1, 1, 1]
    assert values(tmp_path / "both.jsonl") == {"p0": 0.5, "p1": 0.0, "p2": 1.0}
    assert reached(tmp_path / "both.jsonl", steps=False).score == pytest.approx(0.5)
    merge_seeds([first], tmp_path / "one.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == first.read_bytes()


def test_steps_are_counted_for_whole_answers_up_to_a_limit(tmp_path: Path) -> None:
    lines = [f"Step {n}: {n} + 1 = {n + 1}." for n in range(1, 30)]
    rows = [
        eval_row("long", output="\n".join([*lines, "Final Answer: 30"])),
        eval_row("short", output="1 + 1 = 2.\nFinal Answer: 2"),
        eval_row("cut", output="\n".join(lines), finish_reason="length"),
    ]
    write_jsonl(tmp_path / "x.jsonl", rows)
    found = reached(tmp_path / "x.jsonl", steps=True)
    assert found.num_steps == pytest.approx((MAX_STEPS + 1 + 0) / 3)
    assert found.several_steps == pytest.approx(1 / 3)
    assert found.several_steps_ci95 == score_interval([1, 0, 0])
    assert values(tmp_path / "x.jsonl", STEPS) == {"long": 1.0, "short": 0.0, "cut": 0.0}


def test_a_difference_is_found_only_beyond_chance_and_beyond_the_number_of_comparisons(tmp_path: Path) -> None:
    # 6 prompts gained and none lost: p = 2 * 0.5^6 = 0.03125
    first = values(scored(tmp_path / "a.jsonl", [0] * 6 + [1] * 14))
    second = values(scored(tmp_path / "b.jsonl", [1] * 20))

    def found(comparisons: int) -> bool:
        made = difference(
            ("a", first), ("b", second), prompts="test", measure="score", similarity=False, comparisons=comparisons
        )
        assert made.p_value == mcnemar(0, 6) == 0.03125
        assert made.value == pytest.approx(0.3)
        assert made.ci95[0] > 0
        return made.found

    assert found(1)
    assert not found(2)


def test_only_prompts_that_both_have_count(tmp_path: Path) -> None:
    first = values(scored(tmp_path / "a.jsonl", [0, 1]))
    second = values(scored(tmp_path / "b.jsonl", [1, 1, 0]))
    made = difference(("a", first), ("b", second), prompts="t", measure="score", similarity=True, comparisons=1)
    assert (made.n, made.value) == (2, 0.5)


def asked(path: Path, *rows: tuple[str, str, str], system: str = "") -> Path:
    """An eval file of (id, question, gold answer)."""
    before = [{"role": "system", "content": system}] if system else []
    write_jsonl(
        path,
        [
            eval_row(name, prompt=[*before, {"role": "user", "content": question}], answer=gold)
            for name, question, gold in rows
        ],
    )
    return path


def test_instructions_and_system_messages_are_no_part_of_the_question(tmp_path: Path) -> None:
    plain = asked(tmp_path / "a.jsonl", ("p", "1 + 1?", "2"))
    steps = asked(tmp_path / "b.jsonl", ("p", "1 + 1?\nStep by step.", "2"), ("q", "2 + 2?", "4"), system="Be brief.")
    check_same_questions("test", {"plain": (plain, ""), "steps": (steps, "Step by step.")})
    with pytest.raises(UserError, match="steps have another question for p of the prompts test"):
        check_same_questions("test", {"plain": (plain, ""), "steps": (steps, "")})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("p", "1 + 2?", "2"), "the variants a and b have another question for p"),
        (("p", "1 + 1?", "3"), "the variants a and b have another gold answer for p"),
        (("q", "1 + 1?", "2"), "b has no prompt of test in common"),
    ],
)
def test_what_has_the_same_id_must_be_the_same(tmp_path: Path, row: tuple[str, str, str], said: str) -> None:
    first, second = asked(tmp_path / "a.jsonl", ("p", "1 + 1?", "2")), asked(tmp_path / "b.jsonl", row)
    with pytest.raises(UserError, match=said):
        check_same_questions("test", {"a": (first, ""), "b": (second, "")})


def test_bad_gold_answers_do_not_count(tmp_path: Path) -> None:
    rows = [eval_row("good", 1.0), eval_row("bad", 0.0, grade={"score": 0.0, "answer": None, "status": "bad_gold"})]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert values(tmp_path / "x.jsonl") == {"good": 1.0}


def test_examples_are_where_grades_differ_most_in_both_directions(tmp_path: Path) -> None:
    first = scored(tmp_path / "a.jsonl", [0.0, 0.5, 1.0, 1.0, 0.2, 0.1])
    last = scored(tmp_path / "b.jsonl", [1.0, 1.0, 0.0, 1.0, 0.3, 0.9])
    found = telling_examples("test", {"small": first, "large": last})
    assert [example.id for example in found] == ["p0", "p5", "p1", "p2"]
    assert found[0].why == "graded higher for large than for small"
    assert found[-1].why == "graded lower for large than for small"
    assert [(answer.label, answer.score) for answer in found[0].answers] == [("small", 0.0), ("large", 1.0)]


def test_without_a_difference_the_first_prompts_are_the_examples(tmp_path: Path) -> None:
    path = scored(tmp_path / "a.jsonl", [1, 0, 1, 1])
    assert [example.id for example in telling_examples("test", {"a": path, "b": path})] == ["p0", "p1"]
