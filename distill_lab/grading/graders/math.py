r"""Mathematics: right when the answer equals the gold answer as a formula, number, set, interval, matrix or word.

    \boxed{\dfrac{2}{4}}  against  0.5  -> 1        (x+1)^2  against  x^2+2x+1  -> 1        (3, -1)  against  (-1, 3)  -> 0

The answer is what the text states (see `distill_lab.answers`); else a text of one short line, the last formula between
dollars, or the last number. Same text and plain numbers are settled at once (numbers as the numeric grader does); the
rest goes to math-verify (Kydlíček 2025) in a process that is killed after 2.5 s, status `timeout`. What is too long, too
deep or too high to be an honest answer never gets there and is `unparseable`.
"""

from __future__ import annotations

import re
import unicodedata

from distill_lab.answers import MAX_ANSWER_CHARS, after_thinking, stated_answer
from distill_lab.grading.graders import gold_answer
from distill_lab.grading.graders._number import last_number, read_number, same_number
from distill_lab.grading.graders._process import Helper
from distill_lab.grading.graders.numeric import worked_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC = "mathematical equality"
LIMIT_S = 2.5
"""Seconds that math-verify may take over one answer; with the kill a row stays under 3 s."""
MAX_CHARS = 800
MAX_DEPTH = 24
"""Brackets inside one another."""
MAX_EXPONENT = 999
"""Highest number in an exponent, and before a factorial."""
MAX_PLAIN_CHARS = 80
"""A text of one line up to this length is its own answer."""

_math = Helper("distill_lab.grading.graders._math_worker")


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 where the answer equals the gold answer, 0 where not; `unparseable` without an answer, `timeout` when killed.

    Raises UserError where the prompt has no gold answer, and where math-verify is needed and not installed.
    """
    gold = worked_answer(gold_answer(prompt, "math"))
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if not answer:
        return Grade(0.0, None, "unparseable")
    equal = cheap(answer, gold)
    if equal is not None:
        return Grade(float(equal), answer)
    if too_much(answer) or too_much(gold):
        return Grade(0.0, None, "unparseable")
    verdict = _math.ask({"gold": _formula(gold), "answer": _formula(answer)}, limit_s=LIMIT_S)
    if verdict is None or "timeout" in verdict:
        return Grade(0.0, answer, "timeout")
    if not verdict["parsed"]:
        return Grade(0.0, None, "unparseable")
    return Grade(float(verdict["equal"]), answer)


def read_answer(content: str) -> str | None:
    """The answer a completion states; see the top of this file."""
    stated = stated_answer(content)
    if stated is not None:
        return stated
    text = after_thinking(content).strip()
    if len(text) <= MAX_PLAIN_CHARS and "\n" not in text:
        return text or None
    formulas = re.findall(r"\$([^$]{1,400})\$", text[-MAX_ANSWER_CHARS:])
    if formulas:
        return formulas[-1]
    number = last_number(text)
    return number.text if number else None


def cheap(answer: str, gold: str) -> bool | None:
    """Whether they are equal, where that shows without algebra: the same text, or two plain numbers. None: it does not."""
    if normalise(answer) == normalise(gold):
        return True
    found, wanted = read_number(answer, strict=True), read_number(gold, strict=True)
    if found is not None and wanted is not None:
        return same_number(found, wanted)
    word, other = (_TEXT.sub(r"\1", text).strip(" $.。").replace(" ", "") for text in (answer, gold))
    if word.isalpha() and other.isalpha() and (_TEXT.search(gold) or len(other) > 3):
        # Words, not products of variables. Letters in another order are left to the algebra where they may be factors.
        same = word.casefold() == other.casefold()
        return same if same or _TEXT.search(gold) else None
    return None


def too_much(text: str) -> bool:
    """Whether a text is longer, deeper or higher than honest answers are: it is not given to the algebra."""
    if len(text) > MAX_CHARS:
        return True
    depth = deepest = 0
    for letter in text:
        depth += (letter in "({[") - (letter in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return True
    highest = (int((power or factorial)[:9]) for power, factorial in _HIGH.findall(text))
    return (
        tower(text) > 2
        or any(number > MAX_EXPONENT for number in highest)
        or any(int(exponent[:9]) * len(base) > 4 for base, exponent in _NUMBER_TOWER.findall(text))
        or re.search(r"\d{60}|!\s*\)*!", text) is not None
    )


def tower(text: str) -> int:
    """How many exponents stand on one another: 1 for x^2, 2 for e^{x^2} and 9^9^9."""
    height = level = chain = 0
    expecting = raised = False
    groups: list[int] = []
    for token in re.findall(r"\^|\*\*|[{}()]|\d[\d.]*|\\[A-Za-z]+|\S", text):
        if token in ("^", "**"):
            chain, expecting = chain + 1 if raised else 1, True
            height = max(height, level + chain)
        elif token in "({":
            groups.append(chain if expecting else 0)
            level, chain, expecting, raised = level + groups[-1], 0, False, False
        elif token in ")}" and groups:
            chain = groups.pop()
            level, raised = level - chain, chain > 0
        else:
            raised, expecting = expecting, False
    return height


_POWER = r"(?:\^|\*\*)[\s{(]*"
_HIGH = re.compile(rf"(?:{_POWER}-?|binom\{{)(\d+)|(?<!\d)(\d+)(?=[\s)}}]*!)")
_NUMBER_TOWER = re.compile(rf"(?={_POWER}(\d+)[\s}})]*{_POWER}(\d+))")
_SPACING = re.compile(r"\\[!,;:> ]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|[\s$~]|\\[()]")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_SHORT = re.compile(r"(\\frac|\\sqrt)(\d)(?!\d*\])")
_SECOND = re.compile(r"(\\frac\{[^{}]*\})(\w)")


def normalise(text: str) -> str:
    """The form in which two formulas are compared letter by letter: spacing, fonts and short spellings evened out."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
        text = text.replace("−", "-").replace("π", "\\pi").replace("∞", "\\infty").replace("∪", "\\cup")
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = _TEXT.sub(r"\1", _SPACING.sub("", text.replace("{,}", ",")))
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _SECOND.sub(r"\1{\2}", _SHORT.sub(r"\1{\2}", text))
    return re.sub(r"\^\{?\\circ\}?|\\degree|°", "", text).rstrip(".。,")


def _formula(text: str) -> str:
    """What math-verify is given: the formula alone, in ASCII where that changes nothing."""
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return text.replace("−", "-").replace("\n", " ").strip().strip("$").rstrip(".").strip()
