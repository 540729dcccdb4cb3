"""Read answers: text -> what was to be written, or the reason why it cannot be read. Nothing is guessed.

inside("Sure: <instruction>Sort it.</instruction>", "instruction")      ("Sort it.",)
rating("Few steps are shown.\nRating: 3", 0, 9)                          3
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill_lab.answers import after_thinking
from distill_lab.training_data.training_set import CUT, EMPTY, ERROR, NO_COMPLETION
from distill_lab.types import Completion, Message

SEVERAL_TURNS = "several turns"
_WORDS = {"yes": 1, "true": 1, "correct": 1, "no": 0, "false": 0, "incorrect": 0, "wrong": 0}
_LINE = re.compile(
    r"^[^\w\n]{0,9}(?:(?:my|the|final|overall|so|thus)[ ,]{1,3}){0,3}(?:rating|score|level|grade)[*_]{0,3}\s{0,4}"
    r"(?:[:=–—-]|\bis\b)(?P<rest>.*)$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"^[\s*_\[(\"'`]{0,9}(?P<value>\d{1,3}|[a-z]{2,9})(?![\d%])(?!\.\d)(?!,\d)(?P<rest>.*)$", re.IGNORECASE
)
_TAGS = ("rating", "score")


def unfinished(answer: Completion) -> str | None:
    """Why an answer is not read: it failed, was cut off or is empty; None if it can be read."""
    if answer.finish_reason == "error":
        return ERROR
    if answer.finish_reason == "length":
        return CUT
    return None if answer.content.strip() else EMPTY


def inside(text: str, *names: str) -> tuple[str, ...] | str:
    """What is between the tags of each name; a reason if one is missing, empty, damaged or there with two texts.

    Pairs with nothing in them, which a model writes when it repeats the request, do not count.
    """
    found: list[str] = []
    for name in names:
        texts = _pairs(text, name)
        if texts is not None and len(texts) > 1:
            # Perhaps one of them is thinking that the engine did not separate.
            texts = _pairs(after_thinking(text), name)
        if texts is None:
            return f"damaged <{name}>"
        if len(texts) != 1:
            return f"no <{name}>" if not texts else f"several <{name}>"
        found.append(texts[0])
    return tuple(found)


def _pairs(text: str, name: str) -> list[str] | None:
    """The different texts in pairs of a tag; None if a tag is not one of a pair."""
    texts: dict[str, None] = {}
    start: int | None = None
    for tag in re.finditer(rf"<(/?){re.escape(name)}>", text, re.IGNORECASE):
        if bool(tag[1]) == (start is None):
            return None
        if start is None:
            start = tag.end()
            continue
        content = text[start : tag.start()].strip()
        if re.search(r"\w", content):
            texts[content] = None
        start = None
    return list(texts) if start is None else None


def written(answer: Completion, tag: str | None) -> str | tuple[str]:
    """(text,) between the tags, or of the whole answer if `tag` is None; otherwise the reason against it."""
    found = (answer.content.strip(),) if tag is None else inside(answer.content, tag)
    return found if isinstance(found, str) else (found[0],)


def rating(text: str, lowest: int, highest: int) -> int | None:
    """The rating that a reply ends with, from `lowest` to `highest`; None if it gives none, or more than one number.

    It is in <rating> or <score> tags, in the last line that starts with `Rating:`, or it is the whole reply. On the scale
    from 0 to 1 it may be a word: yes, true, correct.
    """
    text = after_thinking(text)
    for tag in _TAGS:
        if f"<{tag}>" in text.lower():
            found = inside(text, tag)
            return None if isinstance(found, str) else _value(found[0], lowest, highest)
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if found := _LINE.match(line):
            return _value(found["rest"], lowest, highest)
    return _value(lines[0], lowest, highest) if len(lines) == 1 and len(lines[0]) <= 12 else None


def _value(text: str, lowest: int, highest: int) -> int | None:
    found = _VALUE.match(text)
    if found is None:
        return None
    rest = re.sub(rf"^[\s*_\])]*(?:/|out of|of)\s*{highest}(?!\d|\.\d)", "", found["rest"])
    if re.search(r"\d", rest) or re.match(r"\W*(?:or|to|and|plus|minus|not)\b", rest, re.IGNORECASE):
        return None
    word = found["value"].lower()
    if word.isdigit():
        number = int(word)
    elif (lowest, highest) == (0, 1) and word in _WORDS and not re.search(r"[a-z]", rest, re.IGNORECASE):
        number = _WORDS[word]
    else:
        return None
    return number if lowest <= number <= highest else None


def shown(messages: Sequence[Message]) -> str:
    """A prompt as one text: the question itself, or a conversation with its roles."""
    if len(messages) == 1:
        return messages[0]["content"].strip()
    return "\n\n".join(f"[{message['role']}]\n{message['content'].strip()}" for message in messages)


def answer_of(completion: Sequence[Message] | None) -> Message | str:
    """The one answer of a row; the reason if the row has none, or several turns."""
    if not completion or not completion[0]["content"].strip():
        return NO_COMPLETION if not completion else EMPTY
    return completion[0] if len(completion) == 1 else SEVERAL_TURNS
