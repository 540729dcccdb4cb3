"""Digits with separators. In: digits as people write them. Out: the value and its decimals, or None if it is ambiguous.

    read_numeral("1,234.50")  read_numeral("1.234,50")  read_numeral("10 000")  read_numeral("5'000")

The rules. A group of thousands has three digits, the first one to three (in India two and two before the last three). Two
kinds of separators: the last is the decimal one and occurs once. A point alone is a decimal point, a comma alone separates
thousands, and then three digits must follow. Everything else ("1,5", "1.2.3", "10,00") could be two things: None.
"""

from __future__ import annotations

import re
from fractions import Fraction

NUMERAL = r"(?:\d+(?:[.,'’_](?=\d)\d+|[ \u00a0\u2007\u2009\u202f]\d{3}(?!\d|[ ]*/))*|\.\d+)"
"""Matches digits with separators, whether or not they can be read."""
_GROUPS = re.compile(r"\d{1,3}(?:(?P<mark>\D)\d{3})(?:(?P=mark)\d{3})*")
_INDIAN = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}")


def read_numeral(text: str) -> tuple[Fraction, int, int] | None:
    """Value, decimals and significant digits; None if the separators are ambiguous."""
    whole, decimals = text, ""
    marks = re.findall(r"\D", text)
    kinds = list(dict.fromkeys(marks))
    if len(kinds) == 2 and marks.count(kinds[1]) == 1 and kinds[1] in ".,":
        whole, _, decimals = text.rpartition(kinds[1])
        if kinds[0] in ".," and not _grouped(whole):
            return None
    elif kinds == ["."] and len(marks) == 1:
        whole, _, decimals = text.partition(".")
    elif len(kinds) > 1:
        return None
    if not whole.isdigit() and whole and not _grouped(whole):
        return None
    digits = re.sub(r"\D", "", whole) or "0"
    significant = len((digits + decimals).lstrip("0"))
    return Fraction(int(digits + decimals), 10 ** len(decimals)), len(decimals), significant


def _grouped(whole: str) -> bool:
    """Whether separators of one kind form groups of thousands."""
    if whole.startswith("0"):
        return False
    return _GROUPS.fullmatch(whole) is not None or _INDIAN.fullmatch(whole) is not None
