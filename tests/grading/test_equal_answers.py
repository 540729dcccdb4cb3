"""Properties of the math and label graders: an answer is right against itself in every spelling, and against no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from distill_lab.grading.graders import load_grader
from distill_lab.grading.graders.label import normalize_label, read_label
from distill_lab.types import Completion, Grade, Prompt

pytestmark = pytest.mark.slow
pytest.importorskip("math_verify")

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MANY = settings(FEW, max_examples=150)
MATH, LABEL, NUMERIC = (load_grader(name) for name in ("math", "label", "numeric"))
STATED = [r"So it is $\boxed{{{}}}$.", r"\boxed{{{}}}", "<answer>{}</answer>", "Final Answer: ${}$", "${}$"]


def graded(gold: str, content: str, **meta: list[str]) -> Grade:
    grader = LABEL if meta else MATH
    return grader(Prompt("p", [], gold, dict(meta)), Completion("p", 0, content, None, "stop", 1))


@dataclass(frozen=True)
class Answer:
    """A value, and the ways in which it may be written."""

    value: object
    """Equal for answers that are equal."""
    spellings: tuple[str, ...]


def of_number(value: Fraction) -> Answer:
    top, bottom = value.numerator, value.denominator
    sign, size = "-" if top < 0 else "", abs(top)
    if bottom == 1:
        return Answer(value, (f"{top}", f"{top}.0", rf"\frac{{{2 * top}}}{{2}}"))
    spellings = [rf"{sign}\frac{{{size}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}"]
    spellings.append(rf"\frac{{{3 * top}}}{{{3 * bottom}}}")
    if 1000 % bottom == 0:
        spellings.append(f"{float(value):.3f}")
    return Answer(value, tuple(spellings))


NUMBERS = st.builds(Fraction, st.integers(-60, 60), st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 12])).map(of_number)


@st.composite
def roots(draw: st.DrawFn) -> Answer:
    """A whole number of times the root of one without a square in it."""
    times, inside = draw(st.integers(1, 9)), draw(st.sampled_from([2, 3, 5, 6, 7, 10]))
    bare = rf"\sqrt{{{inside}}}"
    return Answer(
        ("root", times, inside), (f"{times if times > 1 else ''}{bare}", rf"\sqrt{{{times * times * inside}}}")
    )


@st.composite
def multiples_of_pi(draw: st.DrawFn) -> Answer:
    value = Fraction(draw(st.integers(1, 30)), draw(st.sampled_from([1, 2, 3, 4, 6])))
    top, bottom = value.numerator, value.denominator
    times = "" if top == 1 else str(top)
    if bottom == 1:
        return Answer(("pi", value), (rf"{times}\pi", f"{times}π"))
    return Answer(("pi", value), (rf"\frac{{{times}\pi}}{{{bottom}}}", rf"\frac{{{top}}}{{{bottom}}}\pi"))


@st.composite
def polynomials(draw: st.DrawFn) -> Answer:
    """(x - a)(x - b), multiplied out or not."""
    a, b = sorted(draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
    return Answer(("polynomial", a, b), (f"x^2-{a + b}x+{a * b}", f"(x-{a})(x-{b})", f"{a * b}+x^2-{a + b}x"))


@st.composite
def points(draw: st.DrawFn) -> Answer:
    """Two or three numbers in an order."""
    parts = draw(st.lists(st.integers(-9, 9), min_size=3, max_size=3))
    text = [str(part) for part in parts]
    return Answer(
        ("point", *parts), (f"({', '.join(text)})", f"({','.join(text)})", rf"\left({', '.join(text)}\right)")
    )


@st.composite
def intervals(draw: st.DrawFn) -> Answer:
    low, size = draw(st.integers(-9, 9)), draw(st.integers(1, 9))
    left, right = draw(st.sampled_from([("[", "]"), ("[", ")"), ("(", "]")]))
    text = f"{left}{low},{low + size}{right}"
    return Answer(("interval", text), (text, text.replace(",", ", ")))


@st.composite
def sets(draw: st.DrawFn) -> Answer:
    parts = draw(st.lists(st.integers(-9, 9), min_size=2, max_size=3, unique=True))
    orders = [", ".join(map(str, order)) for order in permutations(parts)]
    return Answer(("set", frozenset(parts)), tuple(rf"\{{{order}\}}" for order in orders))


WORDS = st.sampled_from(["east", "west", "Monday", "Friday", "Evelyn", "circle", "ellipse"]).map(
    lambda word: Answer(word, (rf"\text{{{word}}}", word))
)
ANSWERS = st.one_of(
    NUMBERS, roots(), multiples_of_pi(), polynomials(), points(), intervals(), sets(), WORDS
)  # fmt: skip


@FEW
@given(ANSWERS, st.sampled_from(STATED), st.data())
def test_an_answer_is_right_against_itself_in_every_spelling(answer: Answer, stated: str, data: st.DataObject) -> None:
    gold, said = (data.draw(st.sampled_from(answer.spellings)) for _ in range(2))
    found = graded(gold, stated.format(said))
    assert (found.score, found.status) == (1.0, "ok"), (gold, said)
    same = graded(gold, stated.format(gold))
    assert (same.score, same.status) == (1.0, "ok"), gold


@MANY
@given(ANSWERS, ANSWERS, st.sampled_from(STATED), st.data())
def test_an_answer_is_never_right_against_another(one: Answer, other: Answer, stated: str, data: st.DataObject) -> None:
    assume(one.value != other.value)
    gold, said = data.draw(st.sampled_from(one.spellings)), data.draw(st.sampled_from(other.spellings))
    assert graded(gold, stated.format(said)).score == 0.0, (gold, said)


NEIGHBORS: list[Callable[[Fraction], Fraction]] = [
    lambda value: value + 1, lambda value: -value, lambda value: value * 10, lambda value: 2 * value,
    lambda value: value + Fraction(1, 12), lambda value: 1 / value if value else Fraction(1),
]  # fmt: skip


@MANY
@given(st.integers(-60, 60), st.sampled_from([1, 2, 3, 4, 5, 8]), st.sampled_from(NEIGHBORS), st.data())
def test_a_number_is_never_right_against_one_like_it(
    top: int, bottom: int, change: Callable[[Fraction], Fraction], data: st.DataObject
) -> None:
    value = Fraction(top, bottom)
    assume(change(value) != value)
    gold = data.draw(st.sampled_from(of_number(value).spellings))
    said = data.draw(st.sampled_from(of_number(change(value)).spellings))
    assert graded(gold, rf"\boxed{{{said}}}").score == 0.0, (gold, said)
    for stated in ("{}", "$ {} $", "So it is {}.", "#### {}", "- one\n- {}"):
        text = stated.format(said)
        assert NUMERIC(Prompt("p", [], gold), Completion("p", 0, text, None, "stop", 1)).score == 0.0, (gold, text)


POOLS = [
    ["spam", "not spam", "ham"], ["positive", "negative", "neutral", "very positive"], list("ABCDE"), ["yes", "no"],
    ["1", "2", "3", "10"], ["ar", "de", "el", "en", "ot", "zh"], ["垃圾邮件", "正常邮件"], ["C++", "C", "C#"],
    ["New York", "York", "New York City"], ["true", "false"], ["entailment", "contradiction", "neutral"],
]  # fmt: skip
FORMS = [
    "{}", "{}.", "**{}**", '"{}"', "Final Answer: {}", "Label: {}", r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}",
    "I thought about it.\n\nLabel: **{}**", "<answer>{}</answer>", "The text was long.\n{}",
]  # fmt: skip


@MANY
@given(st.sampled_from(POOLS), st.sampled_from(FORMS), st.data())
def test_a_label_is_right_against_itself_and_wrong_against_every_other(
    labels: list[str], form: str, data: st.DataObject
) -> None:
    gold = data.draw(st.sampled_from(labels))
    text = form.format(data.draw(st.sampled_from([gold, gold.upper(), gold.lower()])))
    assert graded(gold, text, labels=labels) == Grade(1.0, gold), text
    for other in labels:
        if other != gold:
            assert graded(other, text, labels=labels) == Grade(0.0, gold), (text, other)


@MANY
@given(st.lists(st.text("abcxyzäé漢 -+#", min_size=1, max_size=9), min_size=2, max_size=5))
def test_any_label_that_can_be_read_is_right_against_itself_only(texts: list[str]) -> None:
    labels = [text for text in texts if normalize_label(text)]
    assume(len({normalize_label(label) for label in labels}) == len(labels) >= 2)
    for gold in labels:
        if read_label(gold, tuple(labels)) is None:
            continue
        assert graded(gold, gold, labels=labels) == Grade(1.0, gold)
        for other in labels:
            assert graded(other, gold, labels=labels).score == float(other == gold)
