"""What models and data say, as text for a page: nothing in it can act on the page or rearrange it."""

from __future__ import annotations

import unicodedata
from html import escape
from typing import Any


def shown(text: Any) -> str:
    """Escaped, without control characters and direction overrides that could rearrange the page."""
    return escape("".join(letter for letter in str(text) if letter in "\n\t\u200c\u200d" or _is_shown(letter)))


def _is_shown(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs")
