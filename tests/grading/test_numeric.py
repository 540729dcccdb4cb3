"""The numeric grader: where the answer is looked for, how numbers are written, what is equal; then real gold answers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from distill_lab.answers import last_box, stated_answer
from distill_lab.data import adapters
from distill_lab.errors import UserError
from distill_lab.grading.graders import load_grader
from distill_lab.grading.graders._number import last_number, read_number
from distill_lab.grading.graders.numeric import worked_answer
from distill_lab.types import Completion, Grade, Prompt


def graded(content: str, gold: str) -> Grade:
    prompt = Prompt("p-0", [{"role": "user", "content": "?"}], gold)
    return load_grader("numeric")(prompt, Completion("p-0", 0, content, None, "stop", 5))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3}, no: \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"$\boxed{\{1, \{2\}\}}$ so", r"\{1, \{2\}\}"),
        (r"\boxed{x^{2^{3}}}", "x^{2^{3}}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{4} and \boxed{}", "4"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed 5.", "5"),
        (r"\fbox{6}", "6"),
        ("4 + 4 = 8\n#### 8", "8"),
        ("#### 1. First\nx\n#### Result\ny", None),
        ("Final Answer: 7", "7"),
        ("**Final Answer:** 7", "7"),
        ("**Final Answer: 7**", "7"),
        ("### Final Answer\n\n18 apples", "18 apples"),
        ("Final Answer:\n$$\n18\n$$", "18"),
        ("Final Answer: The final answer is $7$.", "$7$."),
        (r"Final Answer: \boxed{12}", "12"),
        ("Final Answer: 3? No.\nFinal Answer: 4", "4"),
        ("\\boxed{5}\nFinal Answer: 6", "6"),
        (r"The answer is positive: \boxed{12}. The answer is good.", "12"),
        ("The answer is 5, or not. The answer is 6.", "6."),
        ("Answer: 5!", "5"),
        ("答案是9页。", "9页。"),
        ("所以答案：9", "9"),
        ("答：9", "9"),
        (r"<think>\boxed{1}</think>The answer is 2", "2"),
        (r"\boxed{1}</think>nothing", None),
        ("<|begin_of_solution|>Answer: 55<|end_of_solution|>", "55"),
        ("no answer here", None),
    ],
)
def test_stated_answer(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"), ("-5", "-5"), ("−5", "-5"), ("- 5", "-5"), ("+5", "5"), ("minus 5", "-5"), ("负5", "-5"),
        ("1,000", "1000"), ("1,234,567.50", "1234567.5"), ("1,00,000", "100000"), (r"1,\!657", "1657"),
        ("48{,}000", "48000"), ("1\u202f000", "1000"), (".5", "0.5"), ("3.0", "3"), ("18.", "18"),
        ("1/2", "1/2"), (r"\frac{1}{2}", "1/2"), (r"\frac12", "1/2"), (r"-\dfrac{1}{2}", "-1/2"),
        (r"\frac{-1}{2}", "-1/2"), ("1 1/2", "3/2"), (r"-1\frac{1}{2}", "-3/2"), ("½", "1/2"), ("3½", "7/2"),
        ("1e5", "100000"), ("1.5E-3", "0.0015"), ("1.5 x 10^3", "1500"), (r"1.5\times 10^{-3}", "0.0015"),
        ("10^3", "1000"), ("10²", "100"), ("2^10", "1024"), ("5 million", "5000000"), ("1.5万元", "15000"),
        ("50%", "1/2"), (r"50\%", "1/2"), ("12 percent", "0.12"), ("百分之12", "0.12"),
        ("$18", "18"), (r"\$3.50", "3.5"), ("-$5", "-5"), ("$-5$", "-5"), ("€5", "5"), ("18 dollars", "18"),
        (r"2\text{ miles}", "2"), (r"71^\circ", "71"), ("12 cm^2", "12"), ("5 m", "5"), ("60 km/h", "60"),
        ("x = 4", "4"), ("3 + 4 = 7", "7"), (r"\(18\)", "18"), ("**18**", "18"), ("(5)", "5"), ("９９", "99"),
        ("1\u200b0", "10"), ("\ufeff7", "7"), ("She has 18 apples.", "18"), ("一共9页。", "9"),
        ("18 dollars for 3 days", "18"), ("18, because 3 x 6 = 18", "18"), ("18, as there are 3 of them", "18"),
    ],
)  # fmt: skip
def test_numbers_that_are_read(text: str, value: str) -> None:
    number = read_number(text)
    assert number is not None
    assert number.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "five", r"\infty", "5 or 6", "5 and 6", "5, 6", "1,2", "(1, 2)", "(5,\\infty)", "[1,2]", "3–5", "3-5",
        "3 to 5", r"2\pi", "2π", "3x", "2x + 5", "-x + 1", "3 - 2i", r"\sqrt{2}", r"3\sqrt{2}", "5!", "9:24", "1.2.3",
        "0.333...", r"0.\overline{3}", r"x \le 5", "> 3", r"\pm 2", "2x - y = 0", "AB=9, CD=4", "101_2", r"\frac{1}{0}",
        "1,0000", "5或6", "10**10**10", "9^9^9^9", "9^{9^{9}}", "1e999999999", "10^999999999", "7" * 500, "2^100000",
    ],
)  # fmt: skip
def test_what_is_no_single_number(text: str) -> None:
    assert read_number(text) is None


def test_a_formula_is_read_more_strictly() -> None:
    assert [read_number(text, strict=True) for text in ("October 30", "2s", "10t", r"\frac23 \approx 0.67")] == [
        None
    ] * 4
    equation, plain = (read_number(text, strict=True) for text in ("n = 255", "255"))
    assert plain is not None
    assert (plain.figure, equation) == (255, plain)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3 + 4 = 7 apples.", "7"), ("so 10 - 5 = 5", "5"), ("it is -5", "-5"), ("= -5", "-5"),
        ("so:\n- 5 apples", "5"), ("total 1,234.", "1234"), ("50% of it", "1/2"), ("$-5$.", "-5"),
        ("H2O has 3", "3"), ("12" + " word" * 500, "12"),
    ],
)  # fmt: skip
def test_last_number(text: str, value: str) -> None:
    number = last_number(text)
    assert number is not None
    assert number.value == Fraction(value)


@pytest.mark.parametrize("text", ["so 10-5", "so 10 - 5", "from 3-5", "5 apples and 3 pears", "Tom has 20, Ann 60"])
def test_sentences_that_state_no_single_number(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        ("1,000", "1000"), ("1000", "1,000"), ("50%", "0.5"), ("0.5", "50%"), ("50%", "50"), ("12", "12%"),
        ("1/2", "0.5"), ("18 dollars", "18"), ("$18.00", "18"), ("3.0", "3"), ("0.6667", "2/3"), ("3.33333", "10/3"),
        ("10/3", "3.33333"), ("33.33%", "1/3"), ("18.000000000000004", "18"), ("2/6", "1/3"), ("-5", "−5"),
        ("<think>5</think>7", "7"), ("It was 3, then 4.\n#### 5", "5"), ("18", "Worked: 3 * 6 = 18\n#### 18"),
        ("18", r"Then $\boxed{18}$."),
    ],
)  # fmt: skip
def test_right(content: str, gold: str) -> None:
    assert graded(content, gold).score == 1.0


@pytest.mark.parametrize(
    ("content", "gold"),
    [
        ("5", "-5"), ("-5", "5"), ("50", "0.5"), ("0.667", "2/3"), ("2813.18", "2813.19"), ("1000001", "1000000"),
        ("10000000000001", "10000000000000"), ("17.99999", "18"), (r"\boxed{1} not \boxed{2}", "1"),
        (r"\boxed{5, 6}", "5"), ("Final Answer: 5 or 6", "5"), ("Final Answer: none\n5", "5"), ("7</think>", "7"),
        (r"\boxed{\text{no solution to } 5 = 6}", "5"),
    ],
)  # fmt: skip
def test_wrong(content: str, gold: str) -> None:
    assert graded(content, gold).score == 0.0


def test_the_answer_is_read_out() -> None:
    assert graded("She pays $1,000.00 in all", "1000") == Grade(1.0, "1,000.00")
    assert graded("Final Answer: nothing", "5") == Grade(0.0, None, "unparseable")


def test_a_gold_answer_that_is_no_number_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"prompt p-0: the gold answer 'blue' is not a number; use the grader math"):
        graded("5", "blue")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 14000, "{" * 100_000, "}" * 100_000, "1" * 100_000, "1," * 50_000, "1 " * 50_000, "1/" * 50_000,
        r"\frac{1}{" * 11_000, "final answer " * 8000, "final answer" + "_ " * 45_000, "answer" + "*" * 90_000,
        " " * 100_000, "final\n" * 16_000, "\\" * 100_000, "#### 1\n" * 14_000, "-" * 100_000, "9^" * 50_000, "(" * 90_000,
        "\u200b" * 50_000, "½" * 50_000, "²" * 50_000,
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
@pytest.mark.timeout(10)
def test_hostile_text_is_graded_at_once(text: str) -> None:
    assert graded(text, "5").score == 0.0
    assert graded(rf"{text} \boxed{{5}}", "5").score in (0.0, 1.0)
    last_box(text)
    worked_answer(text)


@pytest.mark.slow
def test_gold_answers_of_real_data(shared_data: Path) -> None:
    files = ["gsm8k_train", "cmath_test", "mawps_addsub", "mawps_multiarith", "mawps_singleeq", "mawps_singleop"]
    shapes = [
        "{}",
        "So it is {}.",
        r"Thus $\boxed{{{}}}$ follows from 3.",
        "Final Answer: {}",
        "1\n#### {}",
        "答案是{}。",
    ]
    grade, total = load_grader("numeric"), 0
    for file in files:
        for number, line in enumerate((shared_data / f"math/{file}.jsonl").open(encoding="utf-8")):
            row = json.loads(line)
            record = adapters.load(adapters.choose(row) or "").record(row, f"{file}-{number}")
            gold = record.prompt.answer or ""
            for text in [
                shapes[number % len(shapes)].format(gold),
                *(turn["content"] for turn in record.completion or []),
            ]:
                found = grade(record.prompt, Completion(record.prompt.id, 0, text, None, "stop", 1))
                assert found.score == 1.0, (file, gold, text)
            wrong = f"Final Answer: -{gold}" if gold not in ("0", "0.0") else "1"
            assert grade(record.prompt, Completion("", 0, wrong, None, "stop", 1)).score == 0.0
            total += 1
    assert total == 7473 + 600 + 395 + 600 + 508 + 562


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"-\frac{1}{2}", "-1/2"), ("$-\\frac{1}{2}$", "-1/2"), ("-½", "-1/2"), ("$- 8$", "-8"), ("- one\n- 8", "8"),
        ("- one\n- -8", "-8"), ("- one\n- -½", "-1/2"), ("* 8", "8"), ("- 8", None), (r"- \frac{1}{2}", None),
        ("- 8 apples", None), ("- It is 8.", "8"),
    ],
)  # fmt: skip
def test_a_minus_is_no_mark_of_a_list_and_what_may_be_either_is_not_read(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (found and found.value) == (None if value is None else Fraction(value))
