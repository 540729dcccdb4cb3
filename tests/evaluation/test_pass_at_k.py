"""pass@k against counting every draw, the majority vote with ties and spellings, and files."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.pass_at_k import best_of_k, majority_answer, pass_at_k
from distill_lab.files.jsonl import write_jsonl


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 0, 2), (4, 1, 2), (5, 2, 3), (6, 3, 1), (5, 4, 2), (3, 3, 3)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(n: int, correct: int, k: int) -> None:
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 1, 2) == 0.5  # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
    assert 0 < pass_at_k(10_000, 1, 5_000) <= 0.5


def test_the_majority_counts_equal_numbers_as_one_answer_and_the_earliest_of_a_tie() -> None:
    assert majority_answer(["3", "12", "12.0"]) == 1
    assert majority_answer(["3", "12"]) == 0
    assert majority_answer([None, "x", "$x$", None, "y"]) == 1
    assert majority_answer([None, ""]) is None


def write(path: Path, questions: dict[str, list[tuple[str | None, float]]]) -> Path:
    write_jsonl(
        path,
        [
            {"id": key, "sample": sample, "grade": {"score": score, "answer": answer, "status": "ok"}}
            for key, samples in questions.items()
            for sample, (answer, score) in enumerate(samples)
        ],
    )
    return path


def test_a_file_of_samples(tmp_path: Path) -> None:
    path = write(
        tmp_path / "graded.jsonl",
        {
            "a": [("4", 1.0), ("5", 0.0), ("4", 1.0), ("6", 0.0)],
            "b": [("1", 0.0), ("2", 1.0), ("1", 0.0), ("1", 0.0)],
            "c": [("1", 0.0), (None, 0.0), ("1", 0.0), ("1", 0.0)],
        },
    )
    found = best_of_k(path)
    assert list(found.pass_at) == [1, 2, 4]
    assert found.pass_at[1] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert found.pass_at[2] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    assert found.pass_at[4] == pytest.approx(2 / 3)
    assert (found.majority, found.num_questions, found.num_samples) == (pytest.approx(1 / 3), 3, 4)
    assert str(found).startswith("pass@1 25.0%")


def test_more_than_there_are_and_nothing_at_all_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "graded.jsonl", {"a": [("4", 1.0), ("4", 1.0)], "b": [("4", 1.0)]})
    assert best_of_k(path).pass_at == {1: 1.0}
    with pytest.raises(UserError, match="pass@2"):
        best_of_k(path, [2])
    with pytest.raises(UserError, match="no completions"):
        best_of_k(write(tmp_path / "empty.jsonl", {}))
