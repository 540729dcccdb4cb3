r"""Mathematics: correct if the answer equals the gold answer as a formula, number, set, interval, matrix or word.

    \boxed{\dfrac{2}{4}}  against  0.5  -> 1        (x+1)^2  against  x^2+2x+1  -> 1        (3, -1)  against  (-1, 3)  -> 0

The answer is the stated one (see `distill_lab.answers`); otherwise the whole text if it is one short line, the last formula
between dollar signs, or the last number. Equal text and plain numbers are compared directly (numbers as in the numeric
grader); the rest goes to math-verify (Kydlíček 2025) in a process that is killed after 2.5 s (status `timeout`). Text that
is too long, too deeply nested or has too large exponents for an honest answer is not sent and is `unparseable`.
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
"""Time limit for math-verify per answer, in seconds; including the kill, a row takes less than 3 s."""
MAX_CHARS = 800
MAX_DEPTH = 24
"""Maximum nesting of brackets."""
MAX_EXPONENT = 999
"""Maximum number in an exponent or before a factorial."""
MAX_PLAIN_CHARS = 80
"""A single line up to this length is the answer as a whole."""

_math = Helper("distill_lab.grading.graders._math_worker")


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 if the answer equals the gold answer, 0 if not; `unparseable` without an answer, `timeout` if killed.

    Raises UserError if the prompt has no gold answer, or if math-verify is needed but not installed.
    """
    gold = worked_answer(gold_answer(prompt, "math"))
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if not answer:
        return Grade(0.0, None, "unparseable")
    equal = compare_plain(answer, gold)
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
    """Extract the answer of a completion; see the top of this file."""
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


def compare_plain(answer: str, gold: str) -> bool | None:
    """Whether they are equal, compared without algebra: as text or as plain numbers. None if that cannot decide."""
    if normalize_formula(answer) == normalize_formula(gold):
        return True
    found, expected = read_number(answer, strict=True), read_number(gold, strict=True)
    if found is not None and expected is not None:
        return same_number(found, expected)
    word, other = (_TEXT.sub(r"\1", text).strip(" $.。").replace(" ", "") for text in (answer, gold))
    if word.isalpha() and other.isalpha() and (_TEXT.search(gold) or len(other) > 3):
        # Words, not products of variables. Letters in another order may be factors, so algebra has to decide.
        same = word.casefold() == other.casefold()
        return same if same or _TEXT.search(gold) else None
    return None


def too_much(text: str) -> bool:
    """Whether a text is too long, too deeply nested or has too large exponents for an honest answer."""
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
    """Height of nested exponents: 1 for x^2, 2 for e^{x^2} and 9^9^9."""
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


def normalize_formula(text: str) -> str:
    """Normalize a formula for comparison as text: removes spacing and fonts, expands short spellings."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
        text = text.replace("−", "-").replace("π", "\\pi").replace("∞", "\\infty").replace("∪", "\\cup")
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = _TEXT.sub(r"\1", _SPACING.sub("", text.replace("{,}", ",")))
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _SECOND.sub(r"\1{\2}", _SHORT.sub(r"\1{\2}", text))
    return re.sub(r"\^\{?\\circ\}?|\\degree|°", "", text).rstrip(".。,")


def _formula(text: str) -> str:
    """The formula for math-verify, with equivalent Unicode characters replaced by ASCII."""
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return text.replace("−", "-").replace("\n", " ").strip().strip("$").rstrip(".").strip()
