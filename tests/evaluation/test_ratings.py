"""Blind ratings: cards say nothing of models, ratings belong to answers, means and agreement are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.errors import DataError
from distill_lab.evaluation.intervals import bounded_mean
from distill_lab.evaluation.ratings import (
    Card,
    agreement,
    latest,
    make_cards,
    summarize_ratings,
    weighted_kappa,
)
from distill_lab.files.jsonl import write_jsonl
from tests.helpers import eval_row


def answers(folder: Path, *, judged: bool = False) -> dict[str, Path]:
    """Eval files of three models on 20 prompts; student and teacher agree on every second one."""
    found: dict[str, Path] = {}
    for model in ("teacher", "base", "student"):
        rows = []
        for number in range(20):
            said = "teacher" if model == "student" and number % 2 else model
            grade = (
                {"score": 0.75, "answer": "4", "status": "ok"}
                if judged
                else {"score": 1.0, "answer": said, "status": "ok"}
            )
            rows.append(eval_row(f"p{number}", output=f"{said} says {number}", grade=grade))
        found[model] = folder / "eval" / f"{model}.jsonl"
        write_jsonl(found[model], rows)
    return found


def test_cards_are_shuffled_by_the_seed_and_equal_answers_come_once(tmp_path: Path) -> None:
    files = answers(tmp_path)
    cards = make_cards(files, seed=1, number=100)
    assert cards == make_cards(files, seed=1, number=100)
    assert cards != make_cards(files, seed=2, number=100)
    assert len(cards) == 10 * 3 + 10 * 2
    assert {label for card in cards for label in card.labels} == {"teacher", "base", "student"}
    shared = [card for card in cards if set(card.labels) == {"teacher", "student"}]
    assert len(shared) == 10
    orders = [[card.labels[0] for card in cards if card.id == name] for name in {card.id for card in cards}]
    assert len({order[0] for order in orders}) > 1, "the same model is always first"
    assert len({card.id for card in make_cards(files, seed=1, number=5)}) == 5


def rated(folder: Path, cards: list[Card], rating: dict[str, int], *, rater: str = "me") -> Path:
    rows = [{"rater": rater, "id": c.id, "answer": c.digest, "rating": rating[c.labels[-1]]} for c in cards]
    path = folder / "ratings.jsonl"
    before = path.read_text() if path.is_file() else ""
    write_jsonl(path, rows)
    path.write_text(before + path.read_text())
    return path


def test_means_gain_and_raters(tmp_path: Path) -> None:
    files = answers(tmp_path)
    cards = make_cards(files, seed=0, number=100)
    path = rated(tmp_path, cards, {"teacher": 5, "base": 2, "student": 4})
    found = summarize_ratings(path, files)
    assert found is not None
    # The teacher's answer, if it is the student's too, was rated as the student's.
    assert found.models["teacher"].mean == pytest.approx((10 * 5 + 10 * 4) / 20)
    assert (found.models["student"].mean, found.models["base"].mean) == (4, 2)
    low, high = bounded_mean([0.25] * 20)
    assert found.models["base"].ci95 == pytest.approx((1 + 4 * low, 1 + 4 * high))
    assert found.gain is not None
    assert (found.gain.gain, found.gain.n) == (pytest.approx(2.0), 20)
    assert found.gain.ci95[0] < 2 < found.gain.ci95[1]
    assert (found.raters, found.ratings, found.agreement) == (1, 50, None)
    path = rated(tmp_path, cards, {"teacher": 3, "base": 2, "student": 2}, rater="ana")
    both = summarize_ratings(path, files)
    assert both is not None
    assert (both.raters, both.ratings, both.models["student"].mean) == (2, 100, 3)


def test_an_instruction_that_would_tell_the_variant_is_not_shown(tmp_path: Path) -> None:
    instructions = {"none": "", "steps": "Step by step."}
    files = {label: tmp_path / f"{label}.jsonl" for label in instructions}
    for label, text in (("none", "1 + 1?"), ("steps", "1 + 1?\nStep by step.")):
        write_jsonl(files[label], [eval_row("p", prompt=[{"role": "user", "content": text}], output=label)])
    cards = make_cards(files, seed=0, number=1, instructions=instructions)
    assert [card.prompt for card in cards] == ["1 + 1?", "1 + 1?"]
    path = rated(tmp_path, cards, {"none": 2, "steps": 4})
    found = summarize_ratings(path, files, instructions=instructions)
    assert found is not None
    assert {label: each.mean for label, each in found.models.items()} == {"none": 2, "steps": 4}


def test_a_changed_answer_loses_its_rating_and_a_later_line_replaces_an_earlier_one(tmp_path: Path) -> None:
    files = answers(tmp_path)
    cards = make_cards(files, seed=0, number=100)
    path = rated(tmp_path, cards, {"teacher": 5, "base": 2, "student": 4})
    rated(tmp_path, cards[:1], {"teacher": 1, "base": 1, "student": 1})
    assert latest(path)["me", cards[0].digest] == 1
    write_jsonl(files["base"], [eval_row(f"p{number}", output="another answer") for number in range(20)])
    found = summarize_ratings(path, files)
    assert found is not None
    assert set(found.models) == {"teacher", "student"}
    assert found.gain is None


def test_no_ratings_no_summary_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    files = answers(tmp_path)
    assert summarize_ratings(tmp_path / "ratings.jsonl", files) is None
    (tmp_path / "ratings.jsonl").write_text('{"rater": "me", "answer": "x", "rating": 9}\n')
    with pytest.raises(DataError, match=r"ratings.jsonl:1: the rating 9"):
        summarize_ratings(tmp_path / "ratings.jsonl", files)


def test_agreement_with_the_judge(tmp_path: Path) -> None:
    files = answers(tmp_path, judged=True)
    path = rated(tmp_path, make_cards(files, seed=0, number=100), {"teacher": 4, "base": 2, "student": 5})
    found = summarize_ratings(path, files, judge="tiny:teacher")
    assert found is not None
    assert found.agreement is not None
    assert found.agreement.n == 50  # an answer that two models share counts once
    assert (found.agreement.same, found.agreement.within_one) == (10, 30)
    assert "tiny:teacher" in found.agreement.judge


def test_weighted_kappa_by_hand() -> None:
    # Pairs (1,1), (1,2), (5,5): observed (0 + 1 + 0) / 3; expected over all 9 combinations of the margins:
    # first 1: 0 + 1 + 16, twice; first 5: 16 + 9 + 0 -> 59 / 9
    assert weighted_kappa([(1, 1), (1, 2), (5, 5)]) == pytest.approx(1 - (1 / 3) / (59 / 9))
    assert weighted_kappa([(3, 3), (3, 3)]) is None
    assert weighted_kappa([(1, 5), (5, 1)]) == pytest.approx(-1.0)
    found = agreement([(4, 4), (4, 5), (4, 1)], "j")
    assert (found.n, found.same, found.within_one) == (3, 1, 2)
