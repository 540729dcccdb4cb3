"""The words of a text as comparisons see them: without case, spacing, punctuation and Unicode forms, numbers kept whole.

    words("Tom’s price: $1,000.50 - 3 = ?")   ["toms", "price", "1000.50", "-", "3", "="]
    words("小明有3个苹果")                       ["小", "明", "有", "3", "个", "苹", "果"]

Scripts without spaces between words are split into letters, which count as less than a word each (`width`). Signs that
change what a problem means stay: operators between operands, signs of numbers, percent, comparison signs, emoji.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_LETTERS = (
    (0x0E00, 0x0EFF, 0.25),  # Thai, Lao
    (0x1000, 0x109F, 0.25),  # Myanmar
    (0x1780, 0x17FF, 0.25),  # Khmer
    (0x2E80, 0x2FDF, 0.5),  # Han radicals
    (0x3005, 0x3007, 0.5),
    (0x3021, 0x30FF, 0.5),  # kana
    (0x31F0, 0x31FF, 0.5),
    (0x3400, 0x9FFF, 0.5),  # Han
    (0xF900, 0xFAFF, 0.5),
    (0x1B000, 0x1B16F, 0.5),
    (0x20000, 0x323AF, 0.5),
)
"""Letters of scripts without spaces: first and last code point, and the share of a word that a letter is.

A Chinese word has 1.5 to 2 characters, a Thai word about 4."""
_DROPPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sc", "Sk", "Zl", "Zp", "Zs")
"""Categories of characters that become spaces; + < = > | ~ and emoji have others."""
_INSIDE = "'’ʼ`´-\u00ad\u200b\u200c\u200d\u2060\ufeff"
"""Marks in a word that vanish and leave one word."""
_ALIKE = str.maketrans({**dict.fromkeys("‐‑‒–—―−﹣", "-"), "ı": "i", "\u0307": ""})
"""Characters that are written in several ways: dashes, and the Turkish i, whose cases Unicode folds apart."""
_KEPT = {sign: chr(number) for number, sign in enumerate("-*/^%:.,·", start=1)}
"""Signs that stay, each with the control character that marks it until the others are gone."""
_BACK = {ord(mark): sign for sign, mark in _KEPT.items()}
_SPACES = dict.fromkeys([*range(32), 127], " ")
"""Control characters are spaces, and free for marks."""
_MARKED = re.compile(r"[\1-\11]")
_SIGNS = re.compile(r"[-*/^%:·]")
_OPERATOR = re.compile(
    r"(?:(?<=[\d)\]}])|(?<=[^\W\d_])(?<![^\W\d_]{2}))(\s*)([-*/^%:·])(?=\s*(?:[-+\d(\[{\\]|[^\W\d_](?![^\W\d_])))"
)
_SIGN = re.compile(r"(?<![\w)\]}])-(?=\d)")
_PERCENT = re.compile(r"(?<=\d)\s*%")
_POINTS = re.compile(r"\d[.,]\d")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<![\d.,])(\d+)([.,])(\d+)(?![.,]?\d)")
_ALONE = "".join(f"{chr(first)}-{chr(last)}" for first, last, _ in _LETTERS)
_WORD = re.compile(rf"\d+(?:[{_KEPT['.']}{_KEPT[',']}]\d+)?|[+<=>|~\1-\11{_ALONE}]|[^\s\d+<=>|~\1-\11{_ALONE}]+")


class _Table(dict[int, str]):
    """What each character becomes; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        letter, category = chr(code), unicodedata.category(chr(code))
        if letter in _INSIDE:
            made = "" if code > 127 else "\x7f"
        elif category == "So" or (category == "Sm" and code > 127):
            made = f" {letter} "
        else:
            made = " " if category in _DROPPED else letter
        self[code] = made
        return made


_TABLE = _Table({ord(mark): mark for mark in _KEPT.values()})


def words(text: str) -> list[str]:
    """The words of `text`, normalized. Equal lists mean the same text up to case, spacing, punctuation and Unicode form."""
    text = text.translate(_SPACES).casefold()
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_ALIKE)
    if _POINTS.search(text):
        text = _THOUSANDS.sub("", text)
        text = _DECIMAL.sub(lambda found: f"{found[1]}{_KEPT[found[2]]}{found[3]}", text)
    if _SIGNS.search(text):
        text = _OPERATOR.sub(lambda found: _KEPT[found[2]], text)
        text = _SIGN.sub(_KEPT["-"], text)
        text = _PERCENT.sub(_KEPT["%"], text)
    # Only characters of ASCII take the fast way of str.translate, so marks in words are replaced by one first.
    found = _WORD.findall(text.translate(_TABLE).replace("\x7f", ""))
    return [word.translate(_BACK) for word in found] if _MARKED.search(text) else found


def one_text(found: Sequence[str]) -> str:
    """The words as one text without spaces, so that `5 kg` is `5kg`; two numbers in a row stay apart."""
    parts: list[str] = []
    for word in found:
        if parts and word[0].isdigit() and parts[-1][-1].isdigit():
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def width(word: str) -> float:
    """How much of a word it is: 1, less for a letter of a script without spaces."""
    return _width(word) if len(word) == 1 else 1.0


def _width(letter: str) -> float:
    code = ord(letter)
    return next((share for first, last, share in _LETTERS if first <= code <= last), 1.0)
