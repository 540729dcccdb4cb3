r"""Mathematics: correct if the answer equals the gold answer as a formula, number, set, interval, matrix or word.

    \boxed{\dfrac{2}{4}}  against  0.5  -> 1        (x+1)^2  against  x^2+2x+1  -> 1        (3, -1)  against  (-1, 3)  -> 0

The answer is the stated one (see `distill_lab.answers`); otherwise the whole text if it is one short line, the last formula
between dollar signs, or the number of the last sentence with one. Equal text and plain numbers are compared directly, as in
the numeric grader. Anything else is taken apart (`_formula`): lists, tuples, intervals, names and units must agree, and only
single formulas go to the algebra, in a process that is killed after 2.5 s (status `timeout`). Text with several readings, or
that is too long, too deeply nested or has too large exponents for an honest answer, is `unparseable`.
"""

from __future__ import annotations

import re
import time
import unicodedata

from distill_lab.answers import MAX_ANSWER_CHARS, answer_part, find_statement, retracted
from distill_lab.grading.graders import gold_answer
from distill_lab.grading.graders._doubt import denied, hedged
from distill_lab.grading.graders._formula import read_formula
from distill_lab.grading.graders._latex import leaf
from distill_lab.grading.graders._number import last_number, read_number
from distill_lab.grading.graders._process import Helper
from distill_lab.grading.graders._quantity import Number, same_number
from distill_lab.grading.graders._same_formula import same
from distill_lab.grading.graders.numeric import with_unit, worked_answer
from distill_lab.types import Completion, Grade, JsonObject, Prompt

METRIC = "mathematical equality"
LIMIT_S = 2.5
"""Time limit for the algebra per answer, in seconds; including the kill, a row takes less than 3 s."""
MAX_CHARS = 800
MAX_DEPTH = 24
"""Maximum nesting of brackets."""
MAX_EXPONENT = 999
"""Maximum number in an exponent or before a factorial."""
MAX_PLAIN_CHARS = 80
"""A single line up to this length is the answer as a whole; without words, up to MAX_CHARS."""

_algebra = Helper("distill_lab.grading.graders._math_worker")


class _TooSlow(Exception):
    """The algebra did not answer in time."""


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 if the answer equals the gold answer, 0 if not; `unparseable` without one clear answer, `timeout` if killed.

    Raises UserError if the prompt has no gold answer, or if the algebra is needed but not installed.
    """
    gold = worked_answer(gold_answer(prompt, "math"))
    answer = read_answer(completion.content) if completion.finish_reason == "stop" else None
    if not answer:
        return Grade(0.0, None, "unparseable")
    try:
        equal = compare(answer, gold)
    except _TooSlow:
        return Grade(0.0, answer, "timeout")
    return Grade(0.0, None, "unparseable") if equal is None else Grade(float(equal), answer)


def read_answer(content: str) -> str | None:
    """Extract the answer of a completion; see the top of this file."""
    statement = find_statement(content)
    if statement is not None:
        return _only_formula(with_unit(statement))
    text = answer_part(content).strip()
    plain_chars = MAX_PLAIN_CHARS if re.search(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}", _COMMAND.sub("", text)) else MAX_CHARS
    if len(text) <= plain_chars and "\n" not in text:
        return _only_formula(text) or None
    formulas = list(re.finditer(r"\$([^$]{1,400})\$", text[-MAX_ANSWER_CHARS:]))
    if formulas:
        tail = text[-MAX_ANSWER_CHARS:]
        start, end = formulas[-1].span()
        sentence = re.split(r"[.!?]\s|\n", tail[:start])[-1]
        if denied(sentence) or hedged(sentence) or retracted(tail[end:]):
            return None
        return formulas[-1][1]
    number = last_number(text)
    return number.text if number else None


def _only_formula(text: str) -> str | None:
    """The formula of a sentence with one formula between dollar signs; any other text as it is. None if words deny it."""
    formulas = re.findall(r"(?<!\\)\$([^$]+)(?<!\\)\$|\\\((.+?)\\\)", text)
    if len(formulas) != 1:
        return text
    formula = formulas[0][0] or formulas[0][1]
    before, _, after = text.partition(formula)
    if not re.search(r"[A-Za-z]{2}", before):
        return text
    if (
        denied(before)
        or hedged(before)
        or not re.search(
            r"\b(?:is|are|be|equals?|get|has|have|answer|value|so|thus|hence|therefore|at|of)\b|[:=]", before
        )
    ):
        return None
    return f"{formula} {after.lstrip('$ ').lstrip(')')}"


def compare(answer: str, gold: str) -> bool | None:
    """Whether an answer equals the gold answer; None if the answer is ambiguous. Raises _TooSlow."""
    if re.match(r"[\s$(]*~", answer):
        return None  # in LaTeX a space, in plain text "about"
    equal = compare_plain(answer, gold)
    if equal is not None:
        return equal
    if too_much(answer) or too_much(gold):
        return None
    _algebra.start()
    end_s = time.monotonic() + LIMIT_S
    found, expected = read_formula(answer), read_formula(gold)
    if found is None or expected is None:
        return None
    return same(found, expected, lambda one, other: _same_leaf(one, other, end_s))


def _same_leaf(answer: str, gold: str, end_s: float) -> bool | None:
    equal = compare_plain(answer, gold)
    if equal is not None:
        return equal
    if _permuted(answer, gold):
        return None
    formulas = [leaf(side) for text in (answer, gold) for side in text.split("=")]
    if any(formula is None for formula in formulas) or too_much(answer) or too_much(gold):
        return None
    middle = 1 + answer.count("=")
    question: JsonObject = {
        "gold": "=".join(map(str, formulas[middle:])),
        "answer": "=".join(map(str, formulas[:middle])),
    }
    limit_s = end_s - time.monotonic()
    verdict = _algebra.ask(question, limit_s=limit_s) if limit_s > 0 else None
    if verdict is None or "timeout" in verdict:
        raise _TooSlow
    return bool(verdict["equal"]) if verdict["parsed"] else None


def _permuted(answer: str, gold: str) -> bool:
    """Whether two runs of three letters or more differ in their order: words (ten, net), or equal products (abc, cab)."""
    return answer.isalpha() and len(answer) > 2 and answer != gold and sorted(answer) == sorted(gold)


def compare_plain(answer: str, gold: str) -> bool | None:
    """Whether they are equal, compared without algebra: as text or as plain numbers. None if that cannot decide."""
    if normalize_formula(answer) == normalize_formula(gold):
        return True
    if "=" in answer or "=" in gold:
        return None
    expected = read_number(gold, strict=True)
    found = _plain_number(answer) if expected else None
    if found is not None and expected is not None:
        return same_number(found, expected)
    word, other = (_TEXT.sub(r"\1", text).strip(" $.。()").replace(" ", "") for text in (answer, gold))
    if word.isalpha() and other.isalpha() and (_TEXT.search(gold) or min(len(word), len(other)) > 2):
        # Words, not products of variables; letters in another order could be either.
        equal = word.casefold() == other.casefold()
        return None if not equal and sorted(word.casefold()) == sorted(other.casefold()) else equal
    return None


def _plain_number(answer: str) -> Number | None:
    """A number, read as strictly as a formula; in a sentence as the numeric grader reads it."""
    found = read_number(answer, strict=True)
    if (
        found is None
        and re.search(r"[A-Za-z]{3}", _COMMAND.sub("", answer))
        and not re.search(r"\\(?:sqrt|pi|frac)|[√π]", answer)
    ):
        found = read_number(answer)
    return found


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
_COMMAND = re.compile(r"\\[A-Za-z]+")
_SPACING = re.compile(r"\\[!,;:> ]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|[\s$~]|\\[()]")
_DIGIT_SPACE = re.compile(r"(?<=\d)(?:\s|\\[ ,;:>])+(?=\d|\\[dtc]?frac)")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_SHORT = re.compile(r"(\\frac|\\sqrt)(\d)(?!\d*\])")
_SECOND = re.compile(r"(\\frac\{[^{}]*\})(\w)")


def normalize_formula(text: str) -> str:
    """Normalize a formula for comparison as text: removes spacing and fonts, expands short spellings.

    A space between digits stays: 1 1/2 is not 11/2.
    """
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
        text = text.replace("−", "-").replace("π", "\\pi").replace("∞", "\\infty").replace("∪", "\\cup")
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    text = _DIGIT_SPACE.sub("\0", text.strip())
    text = _TEXT.sub(r"\1", _SPACING.sub("", text.replace("{,}", ",")))
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _SECOND.sub(r"\1{\2}", _SHORT.sub(r"\1{\2}", text))
    return re.sub(r"\^\{?\\circ\}?|\\degree|°", "", text).rstrip(".。,")
