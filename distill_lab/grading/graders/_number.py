r"""Parse numbers as people and models write them, exactly. In: a short text. Out: a Number, or None if it is not one.

    read_number("$1,234.50")  read_number(r"-1\frac{1}{2}")  read_number("50%")  read_number("1.5 x 10^3 km")

Accepts signs (also −, "minus", 负), thousands separators, decimals, fractions, mixed numbers, LaTeX, scientific notation,
percent, currencies, units, million / 万, full-width digits, ½. Rejects text with several numbers or any other operation
(`5 or 6`, `2\pi`, `3 - 2i`, `(1, 2)`), and numbers of more than 400 digits.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 400
"""A number with more digits, or a larger power of ten, is rejected before anything is computed."""
ROUNDED_DECIMALS = 4
"""A number with at least this many decimals counts as rounded and may be off by half a unit in its last place."""
FLOAT_NOISE = Fraction(1, 10**12)
WINDOW = 400
"""Characters around the last digit of a text in which to search for its last number."""


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

    @property
    def value(self) -> Fraction:
        """Its value: 1/2 for 50%."""
        return self.figure / 100 if self.percent else self.figure


def same_number(answer: Number, gold: Number) -> bool:
    """Whether both are the same number.

    Whole numbers must be equal. Otherwise, a number with four or more decimals counts as rounded: it may differ by half a
    unit in its last place (0.6667 equals 2/3, 0.667 does not), and by a relative 1e-12 for floating-point errors. If only
    one of the two has a percent sign, either the value or the figure may agree: 50% equals 0.5, and also 50, because the
    other side may have omitted the sign.
    """
    if _close(answer.value, gold.value, answer, gold):
        return True
    return answer.percent != gold.percent and _close(answer.figure, gold.figure, answer, gold)


def _close(one: Fraction, other: Fraction, first: Number, second: Number) -> bool:
    if one == other:
        return True
    if one.denominator == other.denominator == 1:
        return False
    rounded = [
        Fraction(1, 2 * 10**decimals)
        for decimals in (number.decimals + 2 * number.percent for number in (first, second))
        if decimals >= ROUNDED_DECIMALS
    ]
    return abs(one - other) <= max([FLOAT_NOISE * abs(other), *rounded])


_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_QUANTITY = re.compile(
    rf"""(?<![A-Za-z0-9_.^]) (?:(?P<sign>[-+])[ ]*|\b(?P<minus>minus|negative)[ ]+|(?P<fu>负)[ ]*)?
    (?<![A-Za-z_^]) (?P<whole>{_DECIMAL})
    (?: [ ]+(?P<top>\d+)[ ]*/[ ]*(?P<bottom>\d+)
      | [ ]*/[ ]*(?P<over>{_DECIMAL})
      | [eE](?P<e>[-+]?\d+)(?!\w)
      | [ ]*[×xX*][ ]*10[ ]*\^[ ]*\{{?[ ]*(?P<ten>[-+]?\d+)[ ]*\}}?
      | \^[ ]*\{{?(?P<power>[-+]?\d+)\}}?
    )?
    (?:[ ]*(?P<percent>%|per[ ]?cent\b))?
    (?:[ ]*(?P<scale>thousand\b|million\b|billion\b|trillion\b|万|亿))?""",
    re.VERBOSE,
)
_SCALES = {
    "": 1,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "万": 10**4,
    "亿": 10**8,
}

_GROUP_SPACES = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁻⁺]+")
_RANGE_DASH = re.compile(r"(?<!\w)–(?=\d)")
_KEPT = ("<sub>", "<circle>")
_LATEX = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\{,\}", ","),
        (r"\\[!,;:>]", ""),
        (r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])|\\[()\[\]]", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:q?quad|[ ~])", " "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°", " degrees"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\%", "%"),
        (r"(?<=\d)\*\*(?=[-\d])", "^"),
        (r"\*\*|__|`|\\?\$|[€£¥₹₩]", ""),
        (r"百分之\s*(\d[\d.]*)", r"\1%"),
    )
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_PLAIN = re.compile(rf"\s*(-?)\s*({_DECIMAL})\s*")

_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt|pm|mp)(?![A-Za-z])|±")
_ASIDE = re.compile(r"[,;]?\s+\((?=[A-Za-z]{2})|[,;]\s+(?!(?:or|and)\b)(?=[A-Za-z]{2})|[.?;；](?=\s|$)|。|，(?=\D)")
_LETTER = r"(?<![A-Za-z\\])[a-z](?![A-Za-z])"
_EQUATION = re.compile(rf"{_LETTER}\s*[-+*/^]|[-+*/^]\s*\d*{_LETTER}|\d{_LETTER}|,\s*[A-Za-z]\w*\s*$")
"""Matches, left of an equals sign, an equation with unknowns, or one of several values."""
_NOT_BEFORE = re.compile(
    r"[\\^√+*/×(){}\[\]π|_]|-\s*$|\b(?:sqrt|root|log|ln|sin|cos|tan|between|either)\b|[或和到至与、]", re.IGNORECASE
)
_SPACED_WORD = re.compile(r"(?:[A-Za-z]{2}\s+|[^A-Za-z0-9)\]}%\s]\s*)$")
_NOT_AFTER = re.compile(
    r"\s*(?:[-+*/^×÷√!|:_π(\\–~,]|\.\.|…|\.\\|(?:pi|and|or|to|choose|mod)\b)|[A-Za-z](?![A-Za-z])|\s+[b-zB-Z](?![A-Za-z])"
)
_UNIT = re.compile(r"\s*[mgshlLVWNJAKCFt](?![A-Za-z])(?!\s*[-+*/(=])")
_JOINED = re.compile(r"[,;:/|+*^=<>&()\[\]{}\\–、-]|\b(?:and|or|to|through|plus|minus|times)\b|[或和到至与]|^\W*$")
"""Between two numbers, means that they belong together and neither is the answer. "18 dollars for 3 days" has one."""
_LAST_DIGIT = re.compile(r"[\d½¼¾⅓⅔⅛](?=[^\d½¼¾⅓⅔⅛]*\Z)")


def read_number(text: str, *, strict: bool = False) -> Number | None:
    """The single number in a short text, ignoring words and units around it; None if there is not exactly one.

    strict: as in a formula. Rejects words before it (October 30), letters right after it (2s) and approximations (≈).
    """
    line = _plain(text[: 5 * MAX_DIGITS].strip())
    if _INEQUALITY.search(line) or (strict and "≈" in line):
        return None
    left, equals, line = line.replace("≈", "=").rpartition("=")
    if equals and _EQUATION.search(left):
        return None
    line = _ASIDE.split(line.strip().rstrip(","), maxsplit=1)[0].strip()
    while line.startswith("(") and line.endswith(")") and "," not in line:
        line = line[1:-1].strip()
    match = _QUANTITY.search(line)
    if match is None:
        return None
    before, after = line[: match.start()], line[match.end() :]
    if before.strip() and (strict or _NOT_BEFORE.search(before)):
        return None
    if before and match["sign"] and (match[0][1] == " " or not _SPACED_WORD.search(before)):
        return None
    if (_NOT_AFTER.match(after) and (strict or not _UNIT.match(after))) or (strict and after[:1].isalpha()):
        return None
    other = _QUANTITY.search(after)
    if other and (strict or _JOINED.search(after[: other.start()])):
        return None
    return _number(match, sign=match["sign"] or "")


def last_number(text: str) -> Number | None:
    """The last number in `text`; a minus counts as its sign only if it is not a dash or an operation."""
    digit = _LAST_DIGIT.search(text)
    if digit is None:
        return None
    window = _plain(text[max(0, digit.end() - WINDOW) : digit.end() + WINDOW // 4])
    match = None
    for match in _QUANTITY.finditer(window):  # noqa: B007 - keeps the last match
        pass
    if match is None:
        return None
    before = window[: match.start()]
    dash = match["sign"] and (
        re.search(r"[\w)\]}%]$", before) or re.search(r"[\d)\]}%] +$", before) or (re.search(r"(?:^|\n|\w) *$", before)
        and match[0][1] == " ")
    )  # fmt: skip
    return _number(match, sign="" if dash else match["sign"] or "")


def _number(match: re.Match[str], *, sign: str) -> Number | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    whole, decimals = match["whole"].replace(",", ""), 0
    figure = Fraction(whole)
    if match["over"] or match["bottom"]:
        below = Fraction((match["over"] or match["bottom"]).replace(",", ""))
        if not below:
            return None
        figure = figure + int(match["top"]) / below if match["top"] else figure / below
    else:
        decimals = len(whole.partition(".")[2])
    exponent = int(match["e"] or match["ten"] or match["power"] or 0)
    if abs(exponent) > MAX_DIGITS:
        return None
    if match["power"] and figure != 10:
        figure = figure**exponent if abs(exponent) * len(whole) <= MAX_DIGITS and (figure or exponent > 0) else None
    elif match["power"]:
        figure = Fraction(10) ** exponent
    else:
        figure *= Fraction(10) ** exponent
        decimals = max(0, decimals - exponent) if decimals else 0
    if figure is None:
        return None
    figure *= _SCALES[match["scale"] or ""]
    negative = sign == "-" or match["minus"] or match["fu"]
    return Number(match[0].strip(), -figure if negative else figure, bool(match["percent"]), decimals)


def _plain(text: str) -> str:
    """The text with numbers, fractions and signs in plain ASCII, and without LaTeX spacing and fonts."""
    if not text.isascii():
        text = _ascii_digits(text)
    if not text.isdigit():
        for pattern, new in _LATEX:
            text = pattern.sub(new, text)
    if "frac" in text:
        text = _FRACTION.sub(_slashed, text)
    return text


def _slashed(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[2] or "", match[3] or match[4] or ""
    above, below = _PLAIN.fullmatch(top), _PLAIN.fullmatch(bottom)
    if above is None or below is None:
        return match[0]
    sign = "-" if (above[1] == "-") != (below[1] == "-") else ""
    return f" {sign}{above[2]}/{below[2]}"


def _ascii_digits(text: str) -> str:
    text = _GROUP_SPACES.sub("", "".join(letter for letter in text if unicodedata.category(letter) != "Cf"))
    text = _RAISED.sub(lambda match: "^{" + unicodedata.normalize("NFKC", match[0]).replace("−", "-") + "}", text)
    text = _RANGE_DASH.sub("-", text.replace("−", "-").replace("－", "-").replace("﹣", "-"))
    return "".join(map(_ascii_digit, text))


def _ascii_digit(letter: str) -> str:
    if letter.isascii():
        return letter
    form = unicodedata.decomposition(letter)
    if form.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", letter).replace("⁄", "/")
    if form.startswith(_KEPT):
        return letter
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    return unicodedata.normalize("NFKC", letter)
