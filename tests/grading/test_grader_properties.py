"""Properties of the graders, on generated texts: declared errors only, gold answers right, numbers in every spelling."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_lab.answers import after_thinking, answer_part, find_statement, last_box
from distill_lab.errors import UserError
from distill_lab.grading.graders import load_grader
from distill_lab.grading.graders._formula import read_formula
from distill_lab.grading.graders._latex import clean, leaf
from distill_lab.grading.graders._number import last_number, read_number
from distill_lab.grading.graders._quantity import same_number
from distill_lab.grading.graders.judge import read_better, read_grade
from distill_lab.grading.graders.label import read_label
from distill_lab.types import Completion, Prompt

pytestmark = pytest.mark.slow

FAST = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
WORDS = st.sampled_from(
    r"""8 -8 1,000 1.234,50 10 000 1/2 \frac{1}{2} \frac12 \boxed{ } { ( ) [ ] \{ \} $ $$ \( \) #### Answer: Final <answer>
    </answer> <think> </think> is not or and at least 5-6 3 feet % \% pi \pi √ 2√3 x = < ≤ \le ^ ^2 _ _8 ½ ² 万 不是 至少
    Question: Grade: Better: A (A) no No, yes Label: , . ; : ? ! * ** " ' ` \text{ \sqrt \cup \infty \pm ± é 😀 ３ ~ / \\ &
    \begin{pmatrix} \end{pmatrix} half dozen k maybe wait""".split()
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=14).map(" ".join), st.lists(WORDS, max_size=8).map("".join), st.text(max_size=60)
)


@FAST
@given(TEXTS)
def test_parsers_take_any_text(text: str) -> None:
    for parser in (
        after_thinking,
        answer_part,
        find_statement,
        last_box,
        read_number,
        last_number,
        clean,
        leaf,
        read_formula,
    ):
        parser(text)
    for reader in (read_grade, read_better, read_label):
        reader(text)
    read_label(text, ("A", "B", "no", "yes"))
    read_number(text, strict=True)


@FAST
@given(st.sampled_from(["numeric", "exact", "label", "overlap"]), TEXTS, TEXTS)
def test_graders_raise_only_user_errors(name: str, gold: str, content: str) -> None:
    try:
        grade = load_grader(name)(Prompt("p", [], gold), Completion("p", 0, content, None, "stop", 1))
    except UserError:
        return
    assert 0 <= grade.score <= 1
    assert grade.score == 0 or grade.status == "ok"


@FAST
@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_a_number_in_every_spelling_is_itself_and_not_its_neighbor(number: int, decimals: int) -> None:
    value = Fraction(number, 10**decimals)
    plain = f"{abs(number) // 10**decimals:,}" + (f".{abs(number) % 10**decimals:0{decimals}d}" if decimals else "")
    sign = "-" if number < 0 else ""
    european = plain.translate(str.maketrans(",.", ".,"))
    spellings = [
        plain,
        plain.replace(",", ""),
        plain.replace(",", " "),
        plain.replace(",", "'"),
        plain.replace(",", "{,}"),
    ]
    if "," in plain and decimals:
        spellings.append(european)
    gold = read_number(sign + plain.replace(",", ""))
    assert gold is not None
    assert gold.value == value
    step = Fraction(1, 10**decimals)
    neighbor = read_number(str(number + 1) if not decimals else f"{float(value + step):.{decimals}f}")
    for text in spellings:
        found = read_number(sign + text)
        assert found is not None, text
        assert found.value == value, text
        assert same_number(found, gold)
        assert neighbor is None or not same_number(neighbor, gold) or neighbor.value == value


@FAST
@given(
    st.integers(0, 10**6),
    st.sampled_from(["at least {}", "not {}", "{} or 7777777", "half of {}", "{} to 8888888", "{} remainder 3"]),
)
def test_a_number_that_words_qualify_is_never_right(number: int, shape: str) -> None:
    grade = load_grader("numeric")(
        Prompt("p", [], str(number)), Completion("p", 0, shape.format(number), None, "stop", 1)
    )
    assert (grade.score, grade.status) == (0.0, "unparseable")


@FAST
@given(TEXTS)
def test_a_gold_answer_against_itself_is_right(gold: str) -> None:
    for name in ("exact", "overlap"):
        if after_thinking(gold).strip() == gold.strip() != "":
            grade = load_grader(name)(Prompt("p", [], gold), Completion("p", 0, gold, None, "stop", 1))
            assert grade.score == 1.0
    number = read_number(gold)
    if number is not None and find_statement(gold) is None and answer_part(gold) == gold:
        assert same_number(number, number)
        again = read_number(f"{number.figure.numerator}/{number.figure.denominator}" + "%" * number.percent)
        assert again is not None
        assert again.value == number.value
