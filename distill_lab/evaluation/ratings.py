"""A person's blind ratings from 1 to 5: eval files -> answers in shuffled order; ratings.jsonl -> means and agreement.

    cards = make_cards(find_answers(Path("runs/first")), seed=0, number=30)
    summarize_ratings(Path("runs/first")).models["student"]                    ModelRating(mean=3.9, ci95=(3.5, 4.2), n=30)

A line of ratings.jsonl: `{"rater", "id", "answer" (digest), "rating"}`. A rating belongs to the text of an answer, not to a
model: models with the same answer share it, and a rating of an answer that has changed since does not count.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from distill_lab.errors import DataError, UserError
from distill_lab.evaluation.eval_rows import EvalRow, first_samples
from distill_lab.evaluation.intervals import Interval, bounded_mean, proportion
from distill_lab.evaluation.statistics import paired_scores
from distill_lab.files.jsonl import read_jsonl

FILE = "ratings.jsonl"
LOWEST, HIGHEST = 1, 5
SPAN = HIGHEST - LOWEST
MODELS = ("teacher", "base", "student")
JUDGE = "judge:"
NO_INSTRUCTIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Card:
    """One answer to rate."""

    id: str
    prompt: str
    text: str
    labels: tuple[str, ...]
    """Who gave this answer; not shown while rating."""
    gold: str
    """The gold answer or reference text; may be empty."""

    @property
    def digest(self) -> str:
        """Of prompt and answer."""
        return answer_digest(self.prompt, self.text)


@dataclass(frozen=True, slots=True)
class ModelRating:
    """A model's or variant's ratings."""

    mean: float
    """From 1 to 5: mean over prompts, of each the mean over raters."""
    ci95: Interval
    n: int
    """Rated prompts."""


@dataclass(frozen=True, slots=True)
class RatingGain:
    """The student's ratings against those of its base, on prompts for which both are rated."""

    gain: float
    """In points of the scale."""
    ci95: Interval
    p_value: float
    n: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a judge model's grades agree with a person's ratings of the same answers."""

    judge: str
    n: int
    """Pairs of a grade and a rating."""
    same: int
    """Pairs with the same number."""
    within_one: int
    """Pairs that are at most one apart."""
    within_one_ci95: Interval
    kappa: float | None
    """Cohen's kappa with quadratic weights, 1 for the same grades; None if it is not defined."""


@dataclass(frozen=True, slots=True)
class RatingSummary:
    """What a person's ratings say."""

    raters: int
    ratings: int
    models: dict[str, ModelRating]
    gain: RatingGain | None
    agreement: Agreement | None


def answer_digest(prompt: str, text: str) -> str:
    """What a rating belongs to."""
    return hashlib.sha256(f"{prompt}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def judge_name(grader: str) -> str:
    """The judge in a grader's name; empty if another grader is meant."""
    return grader.removeprefix(JUDGE) if grader.startswith(JUDGE) else ""


def find_answers(run_dir: Path) -> dict[str, Path]:
    """The eval files of a run by model. Raises UserError if there are none to rate."""
    files = {model: run_dir / "eval" / f"{model}.jsonl" for model in MODELS}
    found = {model: path for model, path in files.items() if path.is_file()}
    if "student" not in found:
        raise UserError(f"{run_dir} has no graded answers of a student (eval/student.jsonl); give a finished run")
    return found


def make_cards(
    answers: Mapping[str, Path], *, seed: int, number: int, instructions: Mapping[str, str] = NO_INSTRUCTIONS
) -> list[Card]:
    """The answers to rate: prompts in shuffled order, of each prompt the different answers in shuffled order.

    number: maximum prompts. instructions: label -> what follows each question and is not shown, because it would tell who
    answers. The order depends on the seed and the answers, so that a session can go on later.
    """
    rows: dict[str, dict[str, EvalRow]] = {}
    for label, path in answers.items():
        for row in first_samples(path):
            rows.setdefault(row.id, {})[label] = row
    whole = [name for name, given in rows.items() if len(given) == len(answers)]
    rng = random.Random(seed)
    rng.shuffle(whole)
    return [card for name in whole[:number] for card in _cards(name, rows[name], rng, instructions)]


def _cards(name: str, rows: Mapping[str, EvalRow], rng: random.Random, instructions: Mapping[str, str]) -> list[Card]:
    texts: dict[tuple[str, str], list[str]] = {}
    for label, row in rows.items():
        texts.setdefault((row.question(instructions.get(label, "")), row.output.strip()), []).append(label)
    gold = next(iter(rows.values())).answer or ""
    cards = [Card(name, prompt, text, tuple(labels), gold) for (prompt, text), labels in texts.items()]
    rng.shuffle(cards)
    return cards


def read_ratings(path: Path) -> Iterator[tuple[str, str, int]]:
    """Rater, digest of the answer, and rating of each line. Raises DataError, naming the line, for anything else."""
    if not path.is_file():
        return
    for number, row in enumerate(read_jsonl(path), start=1):
        rater, digest, rating = row.get("rater"), row.get("answer"), row.get("rating")
        if not isinstance(rater, str) or not isinstance(digest, str) or type(rating) is not int:
            raise DataError(str(path), number, "not a rating; remove the line")
        if not LOWEST <= rating <= HIGHEST:
            raise DataError(
                str(path), number, f"the rating {rating} is not from {LOWEST} to {HIGHEST}; remove the line"
            )
        yield rater, digest, rating


def latest(path: Path) -> dict[tuple[str, str], int]:
    """(rater, answer) -> rating; a later line replaces an earlier one."""
    return {(rater, digest): rating for rater, digest, rating in read_ratings(path)}


def summarize_ratings(
    ratings: Path,
    answers: Mapping[str, Path],
    *,
    judge: str = "",
    base: str = "base",
    student: str = "student",
    instructions: Mapping[str, str] = NO_INSTRUCTIONS,
) -> RatingSummary | None:
    """What the ratings say of the answers; None if none of them is rated.

    judge: name of the judge that graded the eval files, to compare with; empty: another grader did. instructions: see
    `make_cards`.
    """
    given = latest(ratings)
    by_answer: dict[str, list[int]] = {}
    for (_, digest), rating in given.items():
        by_answer.setdefault(digest, []).append(rating)
    columns: dict[str, dict[str, float]] = {}
    pairs: dict[tuple[str, int], int] = {}
    used: set[str] = set()
    for label, path in answers.items():
        for row in first_samples(path):
            digest = answer_digest(row.question(instructions.get(label, "")), row.output.strip())
            found = by_answer.get(digest)
            if not found:
                continue
            used.add(digest)
            columns.setdefault(label, {})[row.id] = sum(found) / len(found)
            if judge and row.grade.answer is not None and row.grade.answer.isdigit():
                pairs |= {(digest, place): int(row.grade.answer) for place in range(len(found))}
    if not columns:
        return None
    graded = [(grade, by_answer[digest][place]) for (digest, place), grade in pairs.items()]
    return RatingSummary(
        raters=len({rater for rater, digest in given if digest in used}),
        ratings=sum(len(by_answer[digest]) for digest in used),
        models={label: _mean(list(column.values())) for label, column in columns.items()},
        gain=_gain(columns.get(base, {}), columns.get(student, {})),
        agreement=agreement(graded, judge) if graded else None,
    )


def _mean(ratings: Sequence[float]) -> ModelRating:
    low, high = bounded_mean([(rating - LOWEST) / SPAN for rating in ratings])
    return ModelRating(sum(ratings) / len(ratings), (LOWEST + SPAN * low, LOWEST + SPAN * high), len(ratings))


def _gain(base: Mapping[str, float], student: Mapping[str, float]) -> RatingGain | None:
    names = [name for name in base if name in student]
    if not names:
        return None
    found = paired_scores(np.array([[(each[name] - LOWEST) / SPAN for each in (base, student)] for name in names]))
    low, high = found.ci95
    return RatingGain(SPAN * found.gain, (SPAN * low, SPAN * high), found.p_value, len(names))


def agreement(pairs: Sequence[tuple[int, int]], judge: str) -> Agreement:
    """The Agreement of pairs of a judge's grade and a person's rating, from 1 to 5; needs one pair."""
    within = sum(abs(grade - rating) <= 1 for grade, rating in pairs)
    return Agreement(
        judge=judge,
        n=len(pairs),
        same=sum(grade == rating for grade, rating in pairs),
        within_one=within,
        within_one_ci95=proportion(within, len(pairs)),
        kappa=weighted_kappa(pairs),
    )


def weighted_kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Cohen's kappa with quadratic weights (J. Cohen 1968, Psychological Bulletin 70, equation 2): 1 minus observed over
    expected disagreement, the expected one from the margins. None if the margins leave no disagreement to expect."""
    first, second = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    observed = float(((first - second) ** 2).mean())
    expected = float(((first[:, None] - second[None, :]) ** 2).mean())
    return 1 - observed / expected if expected else None
