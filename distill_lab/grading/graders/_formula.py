r"""The structure of a mathematical answer. In: text. Out: a Formula, whose leaves only go to the algebra.

    x=1 or x=2     a list of 1 and 2, named x        (1,2)   a tuple              \{1,2\}   a list: sets have no order
    -2 < x \le 5   the tuple of the interval (-2,5]  52_8    a number in a base   2x = 5    an equation
    12 cm^2        the value 12 with a unit          east    a word               3 (or 4)  None: two answers

What a word, a bracket or an equals sign changes is decided here, so that a different structure is never equal: a list is not
a tuple, y = 5 is not x = 5, 52_9 is not 52_8, "seat" is not "east" (see `_same_formula`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from distill_lab.grading.graders._doubt import doubtful, hedged
from distill_lab.grading.graders._latex import clean, closing
from distill_lab.grading.graders._units import is_measure, read_unit

Kind = Literal["value", "list", "union", "tuple", "equation", "relation", "based", "word"]


@dataclass(frozen=True, slots=True)
class Formula:
    """An answer, taken apart."""

    kind: Kind
    text: str = ""
    """The leaf: a value, a relation, a number in a base, or words."""
    parts: tuple[Formula, ...] = ()
    name: str = ""
    """What it is the value of: x in x = 5, or left of an equation."""
    marks: str = ""
    """A tuple's brackets: (), [), ..."""
    unit: str = ""


_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?![A-Za-z])")
_SHORT_WORDS = frozenset(
    "of is in to at no on by or and the for not yes all any one two six ten per odd sum day are was has had its it be as an"
    " if so we he she than cm km mm kg mg ml ft lb oz yd min sec hr hrs cents mph kph usd sq cu now new old red top box set"
    " way men cat dog sun mon tue wed thu fri sat nor but out up mod gcd lcm max lim deg".split()
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+|\|\s*\\?[A-Za-z]+\s*\|)\s*(?:_\s*(?:\w|\{[^{}]*\}))?'*(?:\s*\^\{-1\})?\s*(?:\(\s*[^()]{0,20}\s*\))?|(?:\\angle|\\triangle|\\overline|\\vec|m\s*\\angle)\s*\{?\s*[A-Z]+\s*\}?"
)
_LEAD = re.compile(
    r"^(?P<lead>[A-Za-z][A-Za-z ,'’-]*?(?:\b(?:is|are|equals|equal to|be|gives|get|has|have)\b"
    r"|:))\s*:?\s*(?P<rest>[^A-Za-z].*|\\.*|[A-Za-z](?![A-Za-z]).*|(?!the\b)[A-Za-z]+)$"
)
_CHOICE = re.compile(r"^\(?\s*(?P<letter>[A-J])\s*(?:\)\s*[:.]?|[.:](?=\s))\s*(?P<rest>.+)$")
_BASED = re.compile(r"^(?P<digits>-?\d[\dA-Fa-f]*(?:\.[\dA-Fa-f]+)?)\s*_\s*(?P<base>\d|\{\s*\w+\s*\}|[a-z]{3,})$")
_TRAILING = re.compile(
    r"^(?P<value>.*?[\d}|)!]|.*?\\(?:pi|infty)"
    r"|\d*[a-z])\s*(?P<words>[A-Za-z][A-Za-z./ ]*(?:\s*\^\s*\{?[23]\}?)?(?:\s*/\s*[A-Za-z]+(?:\^\{?[23]\}?)?)?)$"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_OPENING, _CLOSING = "([{", ")]}"


def read_formula(text: str) -> Formula | None:
    """The structure of an answer; None if it is empty or ambiguous, because words deny it or offer another one."""
    text = clean(text)
    choice = _CHOICE.match(text)
    if (
        choice
        and not choice["rest"].startswith((",", ")"))
        and not re.match(r"\s*[,)]", choice["rest"])
        and "," not in text[: choice.end("letter")]
    ):
        text = choice["rest"].strip()
    return _read(text, top=True) if text else None


def _read(text: str, *, top: bool = False) -> Formula | None:
    text = text.strip().rstrip(",;").strip()
    if not text:
        return None
    words = _words(text)
    if words and top:
        lead = _LEAD.match(text)
        if lead and not _is_words(text):
            if doubtful(
                re.sub(
                    r"\b(?:sum|difference|minimum|maximum|product|ratio|quotient|remainder|number|base)\b",
                    "",
                    lead["lead"],
                )
            ) or hedged(lead["lead"]):
                return None
            return _read(lead["rest"], top=True)
        if _is_words(text):
            return Formula("word", text)
    if any(mark in text for mark in "<>≤≥≠∈∪") or "\\mid" in text:
        return _relation(text)
    parts = _split(text)
    if len(parts) > 1:
        items = [_read(part) for part in parts]
        return _list([item for item in items if item is not None]) if all(items) else None
    if "=" in text and (found := _equation(text)):
        return found
    if words:
        trailing = _TRAILING.match(text)
        if not trailing:
            return None
        return _with_unit(trailing["value"], trailing["words"])
    based = _BASED.match(text)
    if based and re.sub(r"\W", "", based["base"]) == "10":
        return Formula("value", based["digits"])
    if based:
        return Formula("based", re.sub(r"[\s{}]", "", text))
    enclosed = _enclosed(text)
    if enclosed is not None:
        return enclosed if enclosed.kind != "value" or enclosed.text else None
    if text.count("±") == 1:
        both = [_read(text.replace("±", sign)) for sign in ("+", "-")]
        return _list([item for item in both if item]) if all(both) else None
    unit = _TRAILING.match(text)
    if (
        unit
        and len(unit["words"]) == 1
        and unit["value"][-1:].isdigit()
        and text[-2:-1] == " "
        and unit["words"] in "mgshlL"
    ):
        return Formula("value", unit["value"], unit=read_unit(f" {unit['words']}")[0])
    return Formula("value", text)


def _words(text: str) -> list[str]:
    """Runs of letters in `text` that are words, not products of variables."""
    found = _WORD.findall(re.sub(r"\\begin\{\w+\}|\\end\{\w+\}", "", text))
    return [word for word in found if len(word) > 3 or word.lower() in _SHORT_WORDS]


def _is_words(text: str) -> bool:
    """Whether a text is words only: "east", "no solution", "October 30"."""
    return (
        re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,'’:./-]*", text) is not None
        and not re.search(r"[\d=]\s*$|\d\s+or\b|=", text)
    ) or (re.fullmatch(r"[A-Za-z]{4,} \d{1,4}(?:, \d{4})?|[A-Za-z ]+", text) is not None)


def _with_unit(value: str, words: str) -> Formula | None:
    """A value with words after it, if they are a unit or a noun."""
    unit, end = read_unit(f" {words}")
    rest = f" {words}"[end:]
    if (
        doubtful(words)
        or hedged(words)
        or re.search(r"\b(?:is|are|was|were|would|thousand|hundred|million|billion|dozen|k|base|mod)\b", words)
    ):
        return None
    if (
        not unit
        or (not is_measure(unit) and len(words.split()) > 5)
        or (is_measure(unit) and rest.strip() and re.search(r"[\d^]", rest))
    ):
        return None
    inner = _read(value)
    return replace(inner, unit=unit) if inner and inner.kind in ("value", "tuple", "list") else None


def _split(text: str) -> list[str]:
    """The parts of a list without brackets: at commas, semicolons, "and" and "or" outside of brackets."""
    text = _THOUSANDS.sub(
        lambda match: match[0].replace(",", "") if _depth(text, match.start()) == 0 else match[0], text
    )
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        letter = text[place]
        if letter == "\\" and text[place + 1 : place + 2] == "\\":
            place += 2
            continue
        depth += (letter in _OPENING) - (letter in _CLOSING)
        joined = re.compile(r"\s(?:or|and)\s").match(text, place) if depth == 0 and letter == " " else None
        if depth == 0 and (letter in ",;" or joined):
            parts.append(text[start:place])
            place = joined.end() - 1 if joined else place
            start = place + 1
        place += 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _depth(text: str, place: int) -> int:
    return sum((letter in _OPENING) - (letter in _CLOSING) for letter in text[:place])


def _list(items: list[Formula]) -> Formula | None:
    """A list; its parts have no order. Parts that are lists themselves are joined: "x = 1 or x = ±2"."""
    flat: tuple[Formula, ...] = tuple(
        part for item in items for part in (item.parts if item.kind == "list" and not item.name else (item,))
    )
    if (
        any(part.kind in ("equation", "relation", "union") for part in flat)
        and len(flat) > 1
        and not all(part.kind == "equation" for part in flat)
    ):
        return None
    first = next((part.name for part in flat), "")
    if first and len(flat) > 1 and not any(part.name for part in flat[1:]):
        flat = tuple(replace(part, name=first) for part in flat)  # x = 1, 2
    return Formula("list", parts=flat)


def _equation(text: str) -> Formula | None:
    """A value with a name (x = 5), an equation (2x = 5), or the end of a computation (2 + 3 = 5)."""
    sides = [side.strip() for side in text.split("=")]
    if not all(sides):
        return None
    value, names = sides[-1], sides[:-1]
    if (
        re.fullmatch(r"[a-z]", value)
        and len(sides) == 2
        and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", names[0]))
    ):
        value, names = names[0], [value]
    if all(_NAME.fullmatch(name) or _is_words(name) for name in names):
        inner = _read(value)
        if inner is None or inner.kind in ("equation", "word"):
            return None if inner is None or inner.kind == "equation" else replace(inner, name=spaceless(names[0]))
        return replace(inner, name=spaceless(names[0]))
    if any(_words(side) for side in sides):
        return None
    if len(sides) == 2 or not all(_NAME.fullmatch(name) for name in names[:1]):
        letters = [re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|pi|cdot|times|div)", "", side)) for side in sides]
        if not any(letters):
            return Formula("equation", text, parts=tuple(Formula("value", side) for side in sides), marks="computed")
        return (
            Formula("equation", text, parts=tuple(Formula("value", side) for side in sides))
            if len(sides) == 2
            else None
        )
    inner = _read(value)
    return replace(inner, name=spaceless(names[0])) if inner else None


def spaceless(text: str) -> str:
    """Without white space and braces."""
    return re.sub(r"[\s{}]", "", text)


def _enclosed(text: str) -> Formula | None:
    r"""A tuple, an interval, a set, or what simple parentheses hold; None if brackets do not enclose the whole text."""
    if text.startswith("\\langle") and text.endswith("\\rangle"):
        items = [_read(part) for part in _split(text[7:-7])]
        return (
            Formula("tuple", parts=tuple(item for item in items if item), marks="<>")
            if all(items)
            else Formula("value")
        )
    body = text.replace("\\{", "{").replace("\\}", "}")
    if body[:1] not in _OPENING or closing(body, 0) != len(body) - 1:
        return None
    inside, marks = body[1:-1], body[0] + body[-1]
    parts = _split(inside)
    if marks == "()" and len(parts) == 1:
        return _read(inside) or Formula("value")
    items = [_read(part) for part in parts]
    if not parts or not all(items) or any(item and item.kind in ("relation", "union", "equation") for item in items):
        return Formula("value")
    found = tuple(item for item in items if item)
    if marks == "{}":
        return Formula("list", parts=found)
    return Formula("tuple", parts=found, marks=marks) if len(parts) > 1 else Formula("value")


_SIDES = {"<": ")", "≤": "]", ">": "(", "≥": "["}


def _relation(text: str) -> Formula | None:
    r"""Intervals, from brackets or from inequalities; any other relation is only itself."""
    member = re.match(r"^(?P<name>[A-Za-z])\s*∈\s*(?P<set>.+)$", text)
    if member:
        inner = _read(member["set"])
        return (
            replace(inner, name=member["name"])
            if inner and inner.kind in ("tuple", "union", "list")
            else Formula("relation", text)
        )
    if "∪" in text and not re.search(r"[<>≤≥≠∈]", text):
        pieces = [_read(part) for part in text.split("∪")]
        if all(piece and piece.kind in ("tuple", "list") for piece in pieces):
            return Formula("union", parts=tuple(piece for piece in pieces if piece))
        return Formula("relation", text)
    if re.search(r"[≠∈∪=\\]mid|[≠∈∪]|(?<![<>])=", text):
        return Formula("relation", text)
    if re.search(r"\s(?:or|and)\s|,", text):
        joined = re.split(r"\s+or\s+", text)
        pieces = [_interval(part) for part in joined]
        found = [piece for piece in pieces if piece is not None]
        if len(joined) == len(found) > 1 and len({piece.name for piece in found}) == 1:
            return Formula("union", parts=tuple(replace(piece, name="") for piece in found), name=found[0].name)
        return Formula("relation", text)
    return _interval(text) or Formula("relation", text)


def _interval(text: str) -> Formula | None:
    """The interval of `a < x ≤ b`, `x > a` or `a < x`; None for any other inequality."""
    sides = [side.strip() for side in re.split(r"[<>≤≥]", text)]
    signs = re.findall(r"[<>≤≥]", text)
    if not all(sides):
        return None
    if len(signs) == 1:
        left, right = sides
        sign = signs[0]
        if not _NAME.fullmatch(left) or left.startswith("\\pi"):
            left, right, sign = right, left, {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}[sign]
        bound = _read(right)
        if not _NAME.fullmatch(left) or bound is None or bound.kind != "value":
            return None
        infinity = Formula("value", "\\infty" if sign in ">≥" else "-\\infty")
        parts = (bound, infinity) if sign in ">≥" else (infinity, bound)
        marks = _SIDES[sign] + ")" if sign in ">≥" else "(" + _SIDES[sign]
        return Formula("tuple", parts=parts, marks=marks, name=spaceless(left))
    if len(signs) != 2 or not _NAME.fullmatch(sides[1]) or {signs[0] in "<≤", signs[1] in "<≤"} == {True, False}:
        return None
    if signs[0] in ">≥":
        sides.reverse()
        signs = [{">": "<", "≥": "≤"}[sign] for sign in reversed(signs)]
    low, high = _read(sides[0]), _read(sides[2])
    if low is None or high is None or {low.kind, high.kind} != {"value"}:
        return None
    marks = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Formula("tuple", parts=(low, high), marks=marks, name=spaceless(sides[1]))
