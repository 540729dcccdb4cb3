"""Format numbers and untrusted text for people: in the terminal, the report and errors."""

from __future__ import annotations

import math
import unicodedata
from html import escape

KEPT = "\n\u200c\u200d"
"""Line breaks, and the zero-width joiners that Persian, Hindi and emoji need."""


def times(ratio: float, sign: str = "×") -> str:
    """A ratio such as 4.2×, rounded down: 3.0× means at least 3."""
    if ratio >= 20:
        return f"{math.floor(ratio)}{sign}"
    digits = 10 if ratio >= 1 else 100
    # The margin keeps floating-point rounding from turning 4.1 into 4.0.
    return f"{math.floor(ratio * digits + 1e-9) / digits:.{1 if digits == 10 else 2}f}{sign}"


def rounded_up(number: int) -> int:
    """A number rounded up to two digits, as estimates are shown."""
    step = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // step) * step


def clean(text: str) -> str:
    """`text` without control characters, direction marks and lone surrogates; keeps line breaks and joiners."""
    return "".join(
        letter for letter in text if letter in KEPT or unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
    )


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters; its kind if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def duration(seconds: float) -> str:
    """A duration for people: `14 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def shown(text: object) -> str:
    """Like `clean`, escaped for HTML; keeps tabs too."""
    return escape("\t".join(clean(part) for part in str(text).split("\t")))


def p_value_text(p: float) -> str:
    """A p-value for HTML: `= 0.012`, `&lt; 0.0001`."""
    return "&lt; 0.0001" if p < 0.0001 else f"= {p:.2g}"


def seconds_text(seconds: float) -> str:
    """A duration that was measured: 12.3 ms, 0.45 s, 12.3 s, 2.1 min."""
    if seconds >= 100:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def bytes_text(number: float) -> str:
    """Memory: 512 MiB, 1.50 GiB."""
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.0f} MiB"
