r"""Split thinking from the answer, and extract the answer that is stated. In: text by a model or from a data set.

    split_thinking("<think>\n4 + 4\n</think>\n\n8")          -> ("4 + 4", "8")

    stated_answer("4 + 4 = 8.\nFinal Answer: 8 apples")   -> "8 apples"
    stated_answer(r"So $x = \boxed{\frac{1}{2}}$.")        -> r"\frac{1}{2}"

Recognizes `\boxed{...}`, `Final Answer: x` and GSM8K's `#### x`; the last one wins. If there is none, the last
`The answer is x` / `Answer: x` / 答案是 x. Only text after thinking counts. Runs in linear time and reads only the last
100,000 characters.
"""

from __future__ import annotations

import enum
import re

from distill_lab.control_tokens import HARMONY_STARTS, SOLUTION_TAGS, THINKING_TAGS

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


_CHANNEL = re.compile(
    r"<\|channel\|>(?P<head>[^<]*)(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<body>.*?)(?=<\|end\|>|<\|call\|>|<\|return\|>|<\|start\|>|<\|channel\|>|\Z)",
    re.DOTALL,
)
_HARMONY_WITHOUT_MARKS = re.compile(r"analysis(?P<thinking>.*?)assistantfinal(?P<content>.*)", re.DOTALL)


class Closing(enum.Enum):
    """What a closing thinking tag without an opening one means."""

    NO = "text"
    UNCLEAR = "thinking, if the prompt opened it"
    YES = "thinking"


def bare_closing(text: str) -> Closing:
    """What a text's closing tag means if it does not start with an opening one.

    A model whose prompt opens the thinking ends it with the tag on a line by itself and a blank line. A tag within a line,
    in backticks or in a code block is text. On a line by itself without a blank line after it, it may be either.
    """
    return next((found for *_, found in _bare(text)), Closing.NO)


def _bare(text: str) -> list[tuple[str, str, Closing]]:
    """(text before, text after, meaning) of a closing tag that may end thinking."""
    if text.lstrip().startswith(tuple(opening for opening, _ in THINKING_TAGS)):
        return []
    for opening, closing in THINKING_TAGS:
        before, found, after = text.partition(closing)
        if not found or opening in before or closing in after or before.count("```") % 2:
            continue
        alone = not before.strip(" ") or before.rstrip(" ").endswith("\n")
        blank = not after.strip() or after.lstrip().startswith(SOLUTION_TAGS[0]) or re.match(r"[ \t]*\n[ \t]*\n", after)
        if blank and (alone or before[-1:].strip("`'\" ")):
            return [(before, after, Closing.YES)]
        if alone and after.startswith("\n"):
            return [(before, after, Closing.UNCLEAR)]
    return []


def split_thinking(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Split `text` into (thinking, content), without tags and the blank lines around them; empty thinking is None.

    Recognizes the tags of THINKING_TAGS at the start of `text`, and the channels of gpt-oss's format: analysis is thinking,
    final and commentary are content. A closing tag without an opening one ends the thinking if it is on a line by itself
    (`bare_closing`); thinking that is never closed leaves the content empty. opened: the prompt ended inside thinking
    (`chat.opens_thinking`), so any closing tag ends it, and a text cut off before is all thinking. Text without tags is
    returned unchanged.
    """
    stripped = text.lstrip()
    for opening, closing in THINKING_TAGS:
        if stripped.startswith(opening):
            thought, _, content = stripped[len(opening) :].partition(closing)
            return _thinking(thought), _solution(content)
    if opened:
        for opening, closing in THINKING_TAGS:
            before, found, content = text.partition(closing)
            if found and opening not in before:
                return _thinking(before), _solution(content)
        return _thinking(text), ""
    for before, content, _ in _bare(text):
        return _thinking(before), _solution(content)
    if stripped.startswith(HARMONY_STARTS):
        return _channels(stripped)
    if match := _HARMONY_WITHOUT_MARKS.fullmatch(stripped):
        return _thinking(match["thinking"]), match["content"]
    if stripped.startswith(SOLUTION_TAGS[0]):
        return None, _solution(text)
    return None, text


def _channels(text: str) -> tuple[str | None, str]:
    """Harmony: the analysis channel is thinking, the others are content; a call of a tool is left as it is, unread."""
    thinking: list[str] = []
    content: list[str] = []
    for match in _CHANNEL.finditer(text):
        name, *to = match["head"].split()[:2] or [""]
        if to or name not in ("analysis", "commentary", "final"):
            return None, text
        (thinking if name == "analysis" else content).append(match["body"])
    if not thinking and not content:
        return None, text
    return _thinking("\n".join(thinking)), "\n".join(content)


def _thinking(text: str) -> str | None:
    return text.strip("\n") if text.strip() else None


def _solution(text: str) -> str:
    # Remove blank lines, but keep the indentation of the first line of text (code).
    text = re.sub(r"\A(?:\s*\n|[ \t]+)", "", text)
    if text.startswith(SOLUTION_TAGS[0]):
        text = text[len(SOLUTION_TAGS[0]) :].partition(SOLUTION_TAGS[1])[0].strip("\n")
    return text


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
