r"""Numbers, fractions and signs in plain ASCII. In: text with LaTeX and Unicode. Out: the same without LaTeX fonts.

plain_text(r"$1{,}000\text{ m}$") -> "1,000 m "      plain_text("３½") -> "3 1/2"      plain_text(r"\frac{-1}{2}") -> " -1/2"
"""

from __future__ import annotations

import re
import unicodedata

_GROUP_SPACES = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁻⁺]+")
_MINUS = re.compile("[−－﹣‐‑‒]")
_RANGE_DASH = re.compile(r"(?<!\w)–(?=\d)")
_KEPT = ("<sub>", "<circle>")
_LATEX = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\{,\}", ","),
        (r"\\!", ""),
        (r"\\[,;:>]", " "),
        (r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])|\\[()\[\]]", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:q?quad|[ ~])", " "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°(?!\s*[CF])", " degrees"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "≈"),
        (r"\\%", "%"),
        (r"(?<=\d)\*\*(?=[-\d])", "^"),
        (r"\*\*|__|`|\\?\$|[€£¥₹₩]", ""),
        (r"百分之\s*(\d[\d.]*)", r"\1%"),
    )
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_PLAIN = re.compile(r"\s*(-?)\s*((?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+))\s*")


def plain_text(text: str) -> str:
    """See the top of this file."""
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
    text = _RANGE_DASH.sub("-", _MINUS.sub("-", text))
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
