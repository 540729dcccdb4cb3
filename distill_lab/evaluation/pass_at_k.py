"""What several samples per question are worth: graded.jsonl -> pass@1, pass@k and the majority vote.

    best_of_k(Path("graded.jsonl"), (1, 4)).pass_at[4]

pass@k is the chance that at least one of k samples is right: Chen et al. 2021 (arXiv:2107.03374), equation 1, the
estimator without bias. The majority vote is self-consistency (Wang et al. 2022): the answer that occurs most often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import BAD_GOLD
from distill_lab.files.jsonl import read_jsonl
from distill_lab.grading.graders._number import read_number
from distill_lab.grading.graders.math import normalize_formula
from distill_lab.types import Grade


@dataclass(frozen=True, slots=True)
class BestOfK:
    """Means over the questions."""

    num_questions: int
    num_samples: int
    """Samples of the question that has fewest."""
    pass_at: dict[int, float]
    """k -> chance in [0, 1] that one of k samples is right."""
    majority: float
    """Share of the questions whose most frequent answer is right, in [0, 1]."""

    def __str__(self) -> str:
        passes = ", ".join(f"pass@{k} {share:.1%}" for k, share in self.pass_at.items())
        return f"{passes}, majority vote {self.majority:.1%} on {self.num_questions:,} questions"


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples, drawn without putting back from n of which `correct` are, is right.

    `1 - C(n - correct, k) / C(n, k)`, in exact integers. Needs 1 <= k <= n.
    """
    assert 1 <= k <= n, (k, n)
    assert 0 <= correct <= n, (correct, n)
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_answer(answers: Sequence[str | None]) -> int | None:
    """Index of the first sample with the answer that occurs most often; of several such answers, the earliest.

    Numbers that are equal are one answer however they are written. None if no sample has an answer.
    """
    votes: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer:
            number = read_number(answer)
            votes.setdefault(str(number.value) if number else normalize_formula(answer), []).append(index)
    return max(votes.values(), key=len)[0] if votes else None


def best_of_k(graded: Path, ks: Sequence[int] | None = None, *, threshold: float = 1.0) -> BestOfK:
    """The BestOfK of a graded or an eval file, whose samples of a question follow one another.

    ks: each at most the number of samples; None: 1, 2, 4, ... and all of them. threshold: the grade from which a sample is
    right. Raises UserError for a file without rows and for a k beyond the samples of some question.
    """
    questions = [grades for grades in _questions(graded) if all(grade.status != BAD_GOLD for grade in grades)]
    if not questions:
        raise UserError(f"{graded}: no completions in it; generate and grade some first")
    fewest = min(map(len, questions))
    if ks is None:
        ks = [1 << power for power in range(fewest.bit_length()) if 1 << power < fewest] + [fewest]
    if any(not 1 <= k <= fewest for k in ks):
        raise UserError(f"{graded}: pass@{max(ks)} needs so many samples of each question; one has {fewest}")
    rights = [[grade.score >= threshold for grade in grades] for grades in questions]
    voted = 0
    for grades, right in zip(questions, rights, strict=True):
        choice = majority_answer([grade.answer for grade in grades])
        voted += choice is not None and right[choice]
    pass_at = {k: sum(pass_at_k(len(right), sum(right), k) for right in rights) / len(rights) for k in ks}
    return BestOfK(len(questions), fewest, pass_at, voted / len(questions))


def _questions(graded: Path) -> Iterator[list[Grade]]:
    """The grades of each question's samples."""
    slim = ((row["id"], Grade(**row["grade"])) for row in read_jsonl(graded))
    return ([grade for _, grade in rows] for _, rows in groupby(slim, key=lambda row: row[0]))
