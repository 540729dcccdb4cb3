"""Graders: hand-computed verdicts, hostile answers, real data's own gold answers, and the contract of every grader."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.grading.graders import load_grader, names
from distill_lab.grading.graders.exact import normalize, read_answer
from distill_lab.grading.graders.overlap import common_length, rouge_l, words
from distill_lab.types import Completion, FinishReason, Prompt


def prompt(answer: str | None) -> Prompt:
    return Prompt("p-0", [{"role": "user", "content": "?"}], answer)


def completion(content: str, finish_reason: FinishReason = "stop", thinking: str | None = None) -> Completion:
    return Completion("p-0", 0, content, thinking, finish_reason, 5)


@pytest.mark.parametrize("name", [name for name in names() if name != "judge"])
class TestEveryGrader:
    def test_gold_answer_is_right(self, name: str) -> None:
        grade = load_grader(name)(prompt("12"), completion("12"))
        assert (grade.score, grade.status) == (1.0, "ok")

    @pytest.mark.parametrize("reason", ["length", "error"])
    def test_unfinished_is_never_right(self, name: str, reason: FinishReason) -> None:
        assert load_grader(name)(prompt("12"), completion("12", reason)).score == 0.0

    def test_answer_only_in_thinking_is_not_an_answer(self, name: str) -> None:
        grade = load_grader(name)(prompt("12"), completion("", thinking="12"))
        assert (grade.score, grade.answer, grade.status) == (0.0, None, "unparseable")

    @pytest.mark.parametrize("answer", [None, "", "  "])
    def test_no_gold_answer_is_refused_by_name(self, name: str, answer: str | None) -> None:
        with pytest.raises(UserError, match="p-0"):
            load_grader(name)(prompt(answer), completion("12"))


def test_unknown_grader_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"no grader 'os'; choose from .*exact.*overlap"):
        load_grader("os")
    with pytest.raises(UserError, match="no grader '_number'"):
        load_grader("_number")
    with pytest.raises(UserError, match="write judge:MODEL"):
        load_grader("judge")
    with pytest.raises(UserError, match="takes no argument; write exact"):
        load_grader("exact:tiny:teacher")


def test_many_at_once_are_graded_as_one_by_one() -> None:
    grader = load_grader("numeric")
    pairs = [(prompt("12"), completion(text)) for text in ("12", "13", "", "is 12.")]
    assert grader.grade_all(pairs) == [grader(*pair) for pair in pairs]
    assert [grade.score for grade in grader.grade_all(pairs)] == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        ("12.", "12"),
        (" Paris \n", "Paris"),
        ("cat,  dog,\n\tfox", "cat, dog, fox"),
        ("１２", "12"),
        ("\u22125", "-5"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u00a0b", "a b"),
        ("东京。", "东京"),
        ("Step 1: 3 + 4 = 7.\nFinal Answer: 7", "7"),
        ("Final Answer: 3? No.\n**Final answer:** 7", "7"),
        ("**Final Answer: 7**", "7"),
    ],
)
def test_exact_accepts(content: str, gold: str) -> None:
    assert load_grader("exact")(prompt(gold), completion(content)).score == 1.0


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        ("5", "-5"),
        ("1,000", "1000"),
        ("12.0", "12"),
        ("012", "12"),
        ("+12", "12"),
        ("12%", "12"),
        ("10²", "102"),
        ("H₂O", "H2O"),
        ("3½", "31⁄2"),
        ("①", "1"),
        ("12", "1"),
        ("1 2", "12"),
        ("paris", "Paris"),
        ("12..", "12"),
        ("Final Answer: 12\nFinal Answer: 13", "12"),
        ("The answer is 12", "12"),
    ],
)
def test_exact_refuses(content: str, gold: str) -> None:
    assert load_grader("exact")(prompt(gold), completion(content)).score == 0.0


def test_exact_reads_the_answer_out() -> None:
    assert load_grader("exact")(prompt("7"), completion("So.\nFinal Answer: 8.")).answer == "8."
    assert read_answer("no marker") == "no marker"
    grade = load_grader("exact")(prompt("7"), completion("Final Answer:"))
    assert (grade.score, grade.status) == (0.0, "unparseable")


def test_normalize_is_stable() -> None:
    for text in ["ﬁn. ", "Å", "x²", "각", "१२", "٣", "a.b.c."]:
        assert normalize(normalize(text).rstrip(".")) == normalize(text).rstrip(".")


def test_rouge_l_of_lin_2004() -> None:
    # Section 3.1 of the paper: reference "police killed the gunman", answers with LCS 3 and 2 of 4 words each.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(2 / 4)


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat on the mat", "the cat lay on a mat") == pytest.approx(2 / 3)
    assert rouge_l("a b", "a b c d") == pytest.approx(2 * (1 * 0.5) / 1.5)
    assert rouge_l("Yes, INDEED!", "yes indeed") == 1.0
    assert rouge_l("no", "yes") == 0.0
    assert rouge_l("?!", "yes") == 0.0
    assert rouge_l("🙂", "🙂") == 1.0
    assert rouge_l("🙂", "🙃") == 0.0


def test_words_of_many_scripts() -> None:
    assert words("Don't stop-me 3.5") == ["don", "t", "stop", "me", "3", "5"]
    assert words("今天天气, ok") == ["今", "天", "天", "气", "ok"]
    assert words("किताब पढ़ती") == ["किताब", "पढ़ती"]
    assert words("책을 읽어요") == ["책을", "읽어요"]
    assert words("ที่") == ["ที่"]
    assert words("ＡＢＣ") == ["abc"]


def test_common_length_equals_the_textbook_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        first, second = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, left in enumerate(first):
            for j, right in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
        assert common_length(first, second) == table[-1][-1]


def test_gold_answers_of_real_data_are_accepted_and_neighbours_are_not(shared_data: Path) -> None:
    grade = load_grader("exact")
    for name in ("date_understanding", "object_counting", "boolean_expressions"):
        rows = json.loads((shared_data / "bbh" / f"{name}.json").read_text(encoding="utf-8"))["examples"]
        targets = [row["target"] for row in rows]
        assert all(grade(prompt(gold), completion(f"Let me see.\nFinal Answer: {gold}.")).score for gold in targets)
        distinct = sorted(set(targets))
        wrong = [(a, b) for a in distinct for b in distinct if a != b]
        assert wrong
        assert not any(grade(prompt(a), completion(b)).score for a, b in wrong)
