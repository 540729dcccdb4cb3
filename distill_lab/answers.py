r"""Extract the stated answer. In: text by a model or from a data set. Out: the answer as written there, or None.

    stated_answer("4 + 4 = 8.\nFinal Answer: 8 apples")   -> "8 apples"
    stated_answer(r"So $x = \boxed{\frac{1}{2}}$.")        -> r"\frac{1}{2}"

Recognizes `\boxed{...}`, `Final Answer: x` and GSM8K's `#### x`; the last one wins. If there is none, the last
`The answer is x` / `Answer: x` / 答案是 x. Only text after thinking counts. Runs in linear time and reads only the last
100,000 characters.
"""

from __future__ import annotations

import re

from distill_lab.chat import SOLUTION_TAGS, THINKING_TAGS

MAX_CHARS = 100_000
MAX_ANSWER_CHARS = 2_000
"""Maximum length of an answer; longer ones are cut off here."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s+(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)
_MARK = re.compile(r"^####[ \t]{0,4}(?!\d+[.)]\s)(?=[-+−$€£¥￥.\d\\])", re.MULTILINE)
# Followed by a colon, "is", or a line break (a heading); ignores markup around the words.
# Every repetition is bounded; otherwise a long run of spaces would take quadratic time.
_FINAL = re.compile(
    r"final\s{1,4}answer[*_ ]{0,6}(?:is\b)?[*_ ]{0,6}(?:[:：]|(?=\s{0,4}\n))|最终答案[*_ ]{0,6}[是为]?[:：]?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"\banswer[*_ ]{0,6}(?:\b(?:is|equals|would be|should be)\b|[:：=])"
    r"|答案[*_ ]{0,6}(?:应该是|应为|是|为)?[:：]?|答[:：]",
    re.IGNORECASE,
)
_CLOSING = tuple(closing for _, closing in THINKING_TAGS)


def stated_answer(text: str) -> str | None:
    """The answer that `text` states in words or in a box, without markup around it; None if it states none."""
    text = after_thinking(text)
    box = last_box(text)
    strong = [] if box is None else [box]
    strong += [(match.start(), _statement(text[match.end() :])) for match in (_last(_MARK, text),) if match]
    strong += [(match.start(), _statement(text[match.end() :])) for match in (_last(_FINAL, text),) if match]
    for _, answer in sorted(strong, reverse=True):
        if answer:
            weak = _last(_WEAK, answer)  # "Final Answer: The final answer is 8."
            return (_statement(answer[weak.end() :]) if weak else "") or answer
    weak = _last(_WEAK, text)
    return (_statement(text[weak.end() :]) or None) if weak else None


def after_thinking(text: str) -> str:
    """The part of `text` after thinking (at most the last 100,000 characters), without solution tags."""
    text = text[-MAX_CHARS:]
    for closing in _CLOSING:
        text = text.rpartition(closing)[2]
    for tag in SOLUTION_TAGS:
        text = text.replace(tag, "\n")
    return text


def last_box(text: str) -> tuple[int, str] | None:
    r"""Start and content of the last `\boxed{...}` (or `\fbox`) that is closed and not empty.

    Braces nest; `\{` and `\}` are literal. `\boxed 5` contains 5.
    """
    last: tuple[int, str] | None = None
    opened: list[tuple[int, int] | None] = []
    for match in _BRACES.finditer(text):
        found, start = match[0], match.start()
        if match["bare"]:
            last = start, match["bare"].rstrip(".,;")
        elif found == "{":
            opened.append(None)
        elif found == "}":
            box = opened.pop() if opened else None
            if box is not None and (last is None or box[0] > last[0]):
                inside = text[box[1] : min(start, box[1] + MAX_ANSWER_CHARS)].strip()
                last = (box[0], inside) if inside else last
        elif found.endswith("{") and found[1] in "bf":
            opened.append((start, match.end()))
    return last


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - keeps the last match
        pass
    return match


def _statement(rest: str) -> str:
    """The first displayed formula or, if `rest` does not start with one, its first non-empty line."""
    rest = rest[: 2 * MAX_ANSWER_CHARS].lstrip(" \t\r\n*_`:：")
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening):
            return rest[2:].partition(closing)[0].strip()
    line = rest.partition("\n")[0]
    return line.strip().strip("*`").strip().rstrip("!")
