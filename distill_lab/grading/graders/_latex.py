r"""Formulas as people and models write them, in one plain LaTeX. In: text. Out: text that `_formula` and the algebra read.

clean(r"$2√3$") -> r"2\sqrt{3}"     clean("12pi") -> r"12\pi"     clean(r"\dfrac12\text{ cm}^2") -> r"\frac{1}{2} cm ^{2}"
leaf(r"1\frac{1}{2}x") -> r"(1+\frac{1}{2})x"               leaf("1/2x") -> None, because it may be (1/2)x or 1/(2x)
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon phi chi"
    " psi omega"
).split()
"""The Greek letters in the order of Unicode, which has two for sigma."""
_SYMBOLS = {
    "−": "-", "‐": "-", "‑": "-", "–": "-", "－": "-", "﹣": "-",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "≤": r"\le ",
    "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "±": r"\pm ", "∓": r"\mp ", "≈": r"\approx ", "′": "'", "’": "'", "“": '"', "”": '"',
    "⟨": r"\langle ", "⟩": r"\rangle ", **{chr(0x3B1 + place): rf"\{name} " for place, name in enumerate(_LETTERS)},
}  # fmt: skip
_FUNCTIONS = "arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp".split()
_NAMES = re.compile(rf"(?<![A-Za-z\\])({'|'.join([*_FUNCTIONS, *_LETTERS, 'infty'])})(?![A-Za-z])")
_AFTER_NUMBER = re.compile(r"(?<=\d)(pi|sqrt)(?![A-Za-z])")
_ROOT = re.compile(r"(?<![A-Za-z\\])(?:sqrt|root)(?=\s*[({\d])")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|bold|rm|bf)\s*\{([^{}]*)\}"
)
_REPLACED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:left|right|displaystyle|textstyle|limits|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?)(?![A-Za-z])", ""),
        (r"\\!|\\phantom\{[^{}]*\}", ""),
        (r"\{,\}", ","),
        (r"\\[$]|[€£¥₹₩]|(?<!\\)\$", ""),
        (r"\\%", "%"),
        (r"(?<!\\)\\[,;:>~ ]|~|\\(?:q?quad|enspace|thinspace)(?![A-Za-z])", " "),
        (r"\\[()\[\]]", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?:s)?(?![A-Za-z])|°(?!\s*[CF])", ""),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=|=<", "≤"),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=", "≥"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|!=(?!=)", "≠"),
        (r"\\(?:cup|bigcup)(?![A-Za-z])|(?<=[)\]}])\s*U\s*(?=[(\[{\\])", "∪"),
        (r"\\in(?![A-Za-z])", "∈"),
        (r"\\pm(?![A-Za-z])|\+/-|\+-", "±"),
        (r"\\(?:approx|simeq|sim)(?![A-Za-z])", "≈"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[-\w({])", "^"),
        (r"\*\*|__|`", ""),
        (r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\varnothing|\\emptyset", "emptyset"),
        (r"\\log_\{?10\}?(?!\d)", r"\\log_{10}"),
    )
)


def clean(text: str) -> str:
    """One plain LaTeX: no fonts and spacing, no currency, known names as commands, braces where LaTeX lets them out."""
    if not text.isascii():
        text = "".join(map(_plain_letter, unicodedata.normalize("NFC", text)))
        text = re.sub(r"\^\{([^{}]*)\}\^\{([^{}]*)\}", r"^{\1\2}", text)
    for pattern, new in _REPLACED:
        text = pattern.sub(new, text)
    for _ in range(3):
        text, number = _TEXT.subn(r" \1 ", text)
        if not number:
            break
    text = _AFTER_NUMBER.sub(r" \1", text)
    text = _NAMES.sub(r"\\\1 ", _ROOT.sub(r"\\sqrt ", text))
    text = _grouped(text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".。").strip()


def _plain_letter(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _SYMBOLS:
        return _SYMBOLS[letter]
    if unicodedata.category(letter) == "Cf":
        return ""
    form = unicodedata.decomposition(letter)
    if form.startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", letter).partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}"
    if form.startswith(("<super>", "<sub>")):
        mark = "^" if form.startswith("<super>") else "_"
        return f"{mark}{{{unicodedata.normalize('NFKC', letter).replace('−', '-')}}}"
    return str(unicodedata.decimal(letter)) if letter.isdecimal() else unicodedata.normalize("NFKC", letter)


def _grouped(text: str) -> str:
    r"""Braces around the arguments of \frac, \sqrt and powers that LaTeX, or a person, writes without."""
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}", text)
    text = re.sub(r"\\(frac|sqrt)\s+(?=[{\[])", r"\\\1", text)
    text = re.sub(r"\\sqrt\s*(\d+|[A-Za-z])(?!\w*\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*(-?\d{2,}|-\w)", r"^{\1}", text)
    text = re.sub(r"\^\s*\{\s*(\w)\s*\}", r"^\1", re.sub(r"_\s*\{\s*(\w)\s*\}", r"_\1", text))
    for mark in ("^", "\\sqrt"):
        start = 0
        while (found := _find_open(text, mark, start)) is not None:
            end = closing(text, found)
            if end is None:
                break
            text = f"{text[:found].rstrip()}{{{text[found + 1 : end]}}}{text[end + 1 :]}"
            start = found
    return text


def _find_open(text: str, mark: str, start: int) -> int | None:
    match = re.compile(re.escape(mark) + r"\s*(?=\()").search(text, start)
    return match.end() if match else None


def closing(text: str, start: int) -> int | None:
    """Place of the bracket that closes the one at `start`; brackets of any kind match (half-open intervals)."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if not depth:
            return place
    return None


_COMMANDS = frozenset(
    "frac sqrt cdot times div infty begin end binom sum prod int lim to lfloor rfloor lceil rceil overline ell varphi"
    " varepsilon".split()
    + _LETTERS
    + _FUNCTIONS
)
_TOKEN = re.compile(r"\\([A-Za-z]+)|\\\\|\\[{}]|[A-Za-z]|\d+(?:\.\d+)?|\.\d+|[-+*/^_(){}\[\]|!,=&;]|\s+")
_MIXED = re.compile(r"(?<![\w^_.}])(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|\s(\d+)/(\d+)(?![\d./]))(?!\s*[\^!])")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\s*\{(\d{1,20})\}(?!\d)")
_AMBIGUOUS = re.compile(
    r"/\s*(?:\d+(?:\.\d+)?|[A-Za-z]|\\pi)\s*(?:[A-Za-z(]|\\(?!cdot|times|div|\\|end))|/[^-+(){},]*/|(?<!_)(?<!_\{\d)\d\s+\d|\d\s+x\s+\d|^\d[\d.]*\s*-\s*\d[\d.]*$|'|\d_|\.\s*\.|(?<=[\d)])\s*!\s*!|\.\d*\.|(?<!\\)[:?#@\"]"
)
"""Two readings: 1/2x, a/b/c, 3 4, 2 x 3, 52_8, the range 5-6."""


def leaf(text: str) -> str | None:
    """A formula for the algebra; None if it has more than one reading, or is not only a formula."""
    place = 0
    text = _REPEATING.sub(_repeating, text.strip())
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or (match[1] and match[1] not in _COMMANDS):
            return None
        place = match.end()
    if not text or re.search(r"[A-Za-z]{4,}", re.sub(r"\\[A-Za-z]+|\{[bp]?matrix\}|\{array\}", " ", text)):
        return None
    improper = any(
        int(top or 0) >= int(bottom or 0)
        for top, bottom in ((m[2] or m[4], m[3] or m[5]) for m in _MIXED.finditer(text))
    )
    if improper:
        return None
    text = _MIXED.sub(lambda m: rf"(\1+\frac{{{m[2] or m[4]}}}{{{m[3] or m[5]}}})".replace(r"\1", m[1]), text)
    if _AMBIGUOUS.search(text):
        return None
    return re.sub(r"(?<=[\d)])\s*(?=[(]|\\frac|\\sqrt)", r" \\cdot ", text)


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} as the fraction that it is."""
    whole, fixed, repeated = match[1] or "0", match[2], match[3]
    value = Fraction(int(whole + fixed + repeated) - int(whole + fixed), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
