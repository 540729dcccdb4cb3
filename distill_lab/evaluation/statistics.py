"""Two eval files on the same prompts, compared: gain and retention with their intervals, exact McNemar, sign flips.

paired(run.path("eval/base.jsonl"), run.path("eval/student.jsonl"))
retention_interval(run.path("eval/teacher.jsonl"), run.path("eval/student.jsonl"))

Prompts are paired by id, and what has the same id must be the same: prompt and gold answer are compared by content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import BAD_GOLD, EvalRow, first_samples, read_eval_rows
from distill_lab.evaluation.intervals import Interval, bounded_mean, mean_ratio, proportion

FLIPS = 10_000
RIGHT = 0.5
"""From this score on an answer is called right."""
OUTCOMES = {
    (True, True): "both right",
    (True, False): "only the teacher right",
    (False, True): "only the student right",
    (False, False): "neither right",
}
"""Teacher right, student right -> how it is called."""


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is exactly 0 or 1."""
    return all(score in (0.0, 1.0) for score in scores)


def score_interval(scores: Sequence[float]) -> Interval:
    """95% interval of a mean score: Clopper and Pearson's for 0/1 scores, Gaffke's otherwise. Scores are in [0, 1]."""
    return proportion(round(sum(scores)), len(scores)) if is_binary(scores) else bounded_mean(scores)


@dataclass(frozen=True, slots=True)
class Paired:
    """What training gained on the same prompts."""

    gain: float
    """Student score minus base score, in [-1, 1]."""
    ci95: Interval
    """95% interval of `gain`: Gaffke's for the mean of the pairs' differences."""
    p_value: float
    """Two-sided; probability of so large a difference if neither model were better."""
    test: str
    """The test behind `p_value`: "exact McNemar" or "sign-flip permutation"."""


def paired(base: Path, student: Path) -> Paired:
    """Compare two eval files item by item.

    If all grades are 0 or 1: the exact McNemar test, which is the binomial test of the discordant pairs against 1/2
    (McNemar 1947; Fagerland, Lydersen & Laake 2013, section 2.2). Otherwise a sign-flip permutation test of the mean
    difference, 10,000 flips, seeded (Phipson & Smyth 2010 for the + 1). Raises UserError if the files hold different prompts
    or gold answers, or no items.
    """
    return paired_scores(_pairs(base, student))


def paired_scores(pairs: np.ndarray) -> Paired:
    """`paired` of scores `[prompts, 2]`: base, student."""
    differences = pairs[:, 1] - pairs[:, 0]
    if is_binary(pairs.ravel().tolist()):
        test, p_value = "exact McNemar", mcnemar(int((differences < 0).sum()), int((differences > 0).sum()))
    else:
        test, p_value = "sign-flip permutation", sign_flip(differences)
    ci95 = bounded_mean(differences.tolist(), low=-1.0, high=1.0)
    return Paired(float(differences.mean()), ci95, p_value, test)


def retention_interval(teacher: Path, student: Path, *, same_system: bool = True) -> Interval | None:
    """95% interval of retention (student score / teacher score), over pairs of two eval files; see `mean_ratio`.

    None if the teacher scores 0 on every prompt. same_system: False if the teacher has a system prompt that the student does
    not have; then system messages are not compared. Raises UserError as `paired`.
    """
    return mean_ratio(_pairs(teacher, student, same_system=same_system))


def outcomes(teacher: Path, student: Path) -> dict[str, int]:
    """How many prompts both, one or neither of two models get right, by their first sample.

    Right is a score of at least 0.5. Only prompts that both files hold count.
    """
    right = {row.id: row.score >= RIGHT for row in first_samples(teacher)}
    counts = dict.fromkeys(OUTCOMES.values(), 0)
    for row in first_samples(student):
        if row.id in right:
            counts[OUTCOMES[right[row.id], row.score >= RIGHT]] += 1
    return counts


def mcnemar(losses: int, wins: int) -> float:
    """Two-sided exact p-value for `losses` and `wins` among the pairs that differ; 1 if no pair differs."""
    n, fewer = losses + wins, min(losses, wins)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p-value of a mean difference under random signs of the pairs' differences."""
    rng, observed, extreme = np.random.default_rng(0), abs(differences.sum()), 0
    for _ in range(FLIPS // 100):
        signs = rng.integers(0, 2, (100, len(differences))) * 2 - 1
        # The margin keeps sums that are equal on paper equal in floating point.
        extreme += int((np.abs(signs @ differences) >= observed - 1e-9).sum())
    return (extreme + 1) / (FLIPS + 1)


@dataclass(slots=True)
class _Item:
    """A prompt of an eval file."""

    prompt: bytes
    """Digest of its messages."""
    answer: str | None
    """The gold answer."""
    scores: list[float] = field(default_factory=list)
    """Of its samples."""
    bad_gold: bool = False
    """Whether the grader cannot read the gold answer."""


def _pairs(first: Path, second: Path, *, same_system: bool = True) -> np.ndarray:
    """Scores per prompt of two eval files, `[prompts, 2]`."""
    items = [_items(path, same_system=same_system) for path in (first, second)]
    # A gold answer that cannot be read says nothing about either model, also where one of them gave no answer.
    bad = {name for each in items for name, item in each.items() if item.bad_gold}
    items = [{name: item for name, item in each.items() if name not in bad} for each in items]
    _check_same(first, second, *items)
    return np.array([[sum(each[name].scores) / len(each[name].scores) for each in items] for name in items[0]])


def _items(path: Path, *, same_system: bool) -> dict[str, _Item]:
    found: dict[str, _Item] = {}
    for row in read_eval_rows(path):
        item = _Item(_digest(row, same_system=same_system), row.answer)
        known = found.setdefault(row.id, item)
        if (known.prompt, known.answer) != (item.prompt, item.answer):
            raise UserError(
                f"{path}: the samples of {row.id} have different prompts or gold answers; evaluate the model again"
            )
        known.scores.append(row.score)
        known.bad_gold |= row.grade.status == BAD_GOLD
    return found


def _digest(row: EvalRow, *, same_system: bool) -> bytes:
    messages = [message for message in row.prompt if same_system or message["role"] != "system"]
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()


def _check_same(first: Path, second: Path, old: Mapping[str, _Item], new: Mapping[str, _Item]) -> None:
    """Raise UserError unless both files hold the same prompts with the same gold answers, and some."""
    what, odd = "prompts", sorted(old.keys() ^ new.keys())
    how = f"{len(odd)} are in only one"
    if not odd:
        odd = [name for name in old if old[name].prompt != new[name].prompt]
        how = f"{len(odd)} differ under the same id"
    if not odd:
        what, odd = "gold answers", [name for name in old if old[name].answer != new[name].answer]
        how = f"{len(odd)} differ for the same prompt"
    if odd:
        raise UserError(
            f"{first} and {second} hold different {what} ({how}, first: {odd[0]}); evaluate both models on the same prompts"
        )
    if not old:
        raise UserError(f"{first} and {second} hold no items, so there is nothing to compare")
