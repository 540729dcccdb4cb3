"""Quantities: digits with sign, fraction, exponent, percent and scale. In: a match of QUANTITY. Out: a Number.

number_of(QUANTITY.search("-1,234.50 million"))      same_number(answer, gold)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from distill_lab.grading.graders._numeral import NUMERAL, read_numeral

MAX_DIGITS = 400
"""A number with more digits, or a larger power of ten, is rejected before anything is computed."""
ROUNDED_DIGITS = 4
"""A decimal number with at least this many significant digits may be rounded."""
ROUNDED_DECIMALS = 3
"""And it has at least this many decimals, so that no price is."""
FLOAT_NOISE = Fraction(1, 10**12)


@dataclass(frozen=True, slots=True)
class Number:
    """A parsed number."""

    text: str
    """The original text."""
    figure: Fraction
    """Its value, ignoring a percent sign."""
    percent: bool = False
    decimals: int = 0
    """Digits after the point; 0 for a fraction, which is exact."""
    digits: int = 0
    """Significant digits of a decimal number; 0 for a fraction."""
    unit: str = ""
    """The unit or noun after it, in one spelling; see `_units`."""

    @property
    def value(self) -> Fraction:
        """Its value: 1/2 for 50%."""
        return self.figure / 100 if self.percent else self.figure


def same_number(answer: Number, gold: Number) -> bool:
    """Whether both are the same number.

    Whole numbers must be equal, but for a relative 1e-12 of floating-point errors. A decimal number of four or more
    significant digits counts as rounded: the answer may differ from the gold answer by half a unit in the last place of the
    gold answer or, if that is a fraction, of the answer (0.6667 equals 2/3, 0.667 does not). If only one of the two has a
    percent sign, the values must agree (50% equals 0.5) or, for figures above 1, the figures (50% equals 50, because the
    other side may have omitted the sign; 0.5% is not 0.5). If the gold answer names a unit and the answer another, they
    differ: "5 km" and "5 m", "8 apples" and "8 oranges".
    """
    if gold.unit and answer.unit and answer.unit != gold.unit:
        return False
    if _close(answer.value, gold.value, answer, gold):
        return True
    return answer.percent != gold.percent and abs(gold.figure) > 1 and _close(answer.figure, gold.figure, answer, gold)


def _close(one: Fraction, other: Fraction, answer: Number, gold: Number) -> bool:
    if one == other:
        return True
    if one.denominator == other.denominator == 1:
        return False
    if abs(one - other) <= FLOAT_NOISE * abs(other):
        return True
    rounded = gold if gold.decimals else answer
    if rounded is answer and gold.value.denominator == 1:
        return False
    decimals = rounded.decimals + 2 * rounded.percent
    if rounded.digits < ROUNDED_DIGITS or decimals < ROUNDED_DECIMALS:
        return False
    if rounded is gold and answer.decimals and answer.digits < gold.digits:
        return False
    return abs(one - other) <= Fraction(1, 2 * 10**decimals)


_SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "gross": 144,
    "k": 10**3, "mn": 10**6, "mln": 10**6, "bn": 10**9, "百": 100, "千": 10**3, "万": 10**4, "亿": 10**8, "lakh": 10**5,
    "crore": 10**7,
}  # fmt: skip
_SCALE = (
    r"(?:[ -]*(?:hundred|thousand|million|billion|trillion|dozen|gross|lakh|crore)s?\b|(?<=\d)[ ]?[kK](?![A-Za-z])"
    r"|[ ]*(?:mn|mln|bn)\b|[ ]*[百千万亿])"
)
QUANTITY = re.compile(
    rf"""(?<![A-Za-z0-9_.^,]) (?:(?P<sign>[-+])[ ]*|\b(?P<minus>minus|negative)[ ]+|(?P<fu>负)[ ]*)?
    (?<![A-Za-z_^]) (?P<whole>{NUMERAL})
    (?: [ ]+(?P<top>\d+)[ ]*/[ ]*(?P<bottom>\d+)
      | [ ]*/[ ]*(?P<over>{NUMERAL})
      | [eE](?P<e>[-+]?\d+)(?!\w)
      | [ ]*[×xX*][ ]*10[ ]*\^[ ]*\{{?[ ]*(?P<ten>[-+]?\d+)[ ]*\}}?
      | \^[ ]*\{{?(?P<power>[-+]?\d+)\}}?
    )?
    (?:[ ]+and[ ]+(?:an?|one)[ ]+(?P<part>half|quarter|third)\b)?
    (?:[ ]*(?P<percent>%|per[ ]?cent\b))?
    (?P<scale>{_SCALE}*)""",
    re.VERBOSE,
)
_PARTS = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}


def number_of(match: re.Match[str], *, sign: str, unit: str) -> Number | None:
    """The Number of a match; None if it is ambiguous, divides by zero or is too large."""
    if len(match[0]) > MAX_DIGITS:
        return None
    read = read_numeral(match["whole"])
    if read is None:
        return None
    figure, decimals, digits = read
    if match["over"] or match["bottom"]:
        below = read_numeral(match["over"] or match["bottom"])
        if below is None or not below[0] or (match["top"] and (decimals or not 0 < int(match["top"]) < below[0])):
            return None
        figure = figure + int(match["top"]) / below[0] if match["top"] else figure / below[0]
        decimals = digits = 0
    exponent = int(match["e"] or match["ten"] or match["power"] or 0)
    if abs(exponent) > MAX_DIGITS:
        return None
    if match["power"] and figure != 10:
        if abs(exponent) * len(match["whole"]) > MAX_DIGITS or (not figure and exponent <= 0):
            return None
        figure = figure**exponent
    elif match["power"]:
        figure = Fraction(10) ** exponent
    else:
        figure *= Fraction(10) ** exponent
        decimals = max(0, decimals - exponent) if decimals or exponent < 0 else 0
    if match["part"]:
        figure += _PARTS[match["part"]]
    for name in re.findall(r"[a-z]+|[百千万亿]", match["scale"].lower()):
        figure *= _SCALES[name.removesuffix("s")]
    negative = sign == "-" or match["minus"] or match["fu"]
    return Number(match[0].strip(), -figure if negative else figure, bool(match["percent"]), decimals, digits, unit)
