r"""Remove a secret from text, both verbatim and in the forms in which servers and libraries repeat it.

    redact = Redactor("sk-secret-0123456789abcdef")
    redact("you sent sk%2Dsecret-01234 56789abcdef")      -> "you sent ***"

Finds the secret in any case, split by spaces, quotes, line breaks or invisible characters, half of it or more, reversed, in
percent, backslash, HTML and quoted-printable escapes (mixed, and of some characters only), in hexadecimal or decimal
numbers, and in base64 at any offset of the encoded text. Text that contains a form that cannot be removed is withheld
completely.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from distill_lab.settings.secrets import ENVIRONMENT, MARK

MIN_LENGTH = 8
"""A shorter secret is a placeholder (EMPTY, ollama) that may occur in an answer; it is not removed."""
LONG = 16
"""Minimum length of secrets that are also removed in pieces; a shorter one may be a word."""
MIN_PIECE = 10
_INVISIBLE = r"\x00-\x20\x7f-\xa0\xad\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff"
_BETWEEN = rf"(?:[{_INVISIBLE}\"'`,;|*]|\\{{1,4}}[nrtbf0\"'/])"
_OTHER = re.compile(r"[^0-9a-z]+")
_ESCAPE = re.compile(r"\\{1,4}(?:u\{?0*([0-9a-fA-F]{2})\}?|x([0-9a-fA-F]{2})|([0-3][0-7]{2}))|=([2-7][0-9a-fA-F])")


def environment_redactor(environment: Mapping[str, str] = os.environ) -> Callable[[str], str]:
    """A function that removes the values of the environment variables ENVIRONMENT from text; it reads them at each call."""
    known: dict[str, Redactor] = {}

    def redact(text: str) -> str:
        for name in ENVIRONMENT:
            if secret := environment.get(name, "").strip():
                if secret not in known:
                    known[secret] = Redactor(secret)
                text = known[secret](text)
        return text

    return redact


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that removes all of these secrets from text, the first ones first."""
    known = [Redactor(secret) for secret in secrets]

    def redact(text: str) -> str:
        for each in known:
            text = each(text)
        return text

    return redact


class Redactor:
    """Removes one secret from text; an empty or short secret is ignored."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self._on = len(secret) >= MIN_LENGTH
        if not self._on:
            return
        self._pieces = _pieces(secret) if len(secret) >= LONG else []
        encoded = secret.encode()
        codes = [list(encoded), list(reversed(encoded))] if len(secret) >= LONG else [list(encoded)]
        texts = ["".join(map(chr, code)) for code in codes]
        base64s = _base64(encoded)
        hexes = ["".join(f"{number:02x}" for number in code) for code in codes]
        decimals = [[str(number) for number in code] for code in codes]
        needles = (*texts, *base64s, *hexes, *("".join(row) for row in decimals), *self._pieces)
        self._needles = {needle for needle in map(self._squeezed, needles) if len(needle) >= MIN_LENGTH}
        between = f"{_BETWEEN}{{0,8}}" if len(secret) >= LONG else ""
        forms = [f"(?i:{between.join(map(_spelled, text))})" for text in texts]
        forms += [between.join(map(_spelled, text)) for text in base64s]
        apart = rf"(?:[{_INVISIBLE}:,;.-]|0x|\\{{1,4}}x){{0,6}}"
        forms += [f"(?i:{apart.join(re.findall('..', text))})" for text in hexes]
        forms += [rf"(?<!\d){r'[^0-9]{1,6}'.join(row)}(?!\d)" for row in decimals]
        self._forms = re.compile("|".join(forms))

    def __call__(self, text: str) -> str:
        """`text` with the secret replaced by MARK."""
        if not self._on or not self._is_in(text):
            return text
        text = self._forms.sub(MARK, text)
        text = self._without_pieces(text)
        return MARK if self._is_in(text) else text

    def _is_in(self, text: str) -> bool:
        """Whether the text may contain any form of the secret; fast, because nearly all texts contain none."""
        squeezed = self._squeezed(_decoded(text))
        return any(needle in squeezed for needle in self._needles)

    def _squeezed(self, text: str) -> str:
        """`text` in lower case and, for a long secret, without anything that may separate its characters."""
        text = text.lower()
        return _OTHER.sub("", text.replace("0x", "")) if len(self.secret) >= LONG else text

    def _without_pieces(self, text: str) -> str:
        lower, spans = text.lower(), []
        for piece in self._pieces:
            offset = lower.find(piece)
            while offset >= 0:
                spans.append((offset, offset + len(piece)))
                offset = lower.find(piece, offset + 1)
        kept, end = [], 0
        for start, stop in sorted(spans):
            if start > end or not kept:
                kept += [text[end:start], MARK]
            end = max(end, stop)
        return "".join([*kept, text[end:]])


def _pieces(secret: str) -> Iterable[str]:
    """Every piece of half the secret's length, in lower case."""
    size = max(MIN_PIECE, (len(secret) + 1) // 2)
    return [secret[start : start + size].lower() for start in range(len(secret) - size + 1)]


def _spelled(character: str) -> str:
    """A pattern for one character, verbatim or escaped."""
    code = ord(character)
    high, low = f"{code:02x}"
    two = f"(?i:{high}{low})"
    numbers = rf"%(?:25)*{two}|={two}|\\{{1,4}}(?:u\{{?0*{two}\}}?|x{two}|{code:03o})|&\#0*{code};?|&\#[xX]0*{two};?"
    return rf"(?:{re.escape(character)}|{numbers}|\\{{1,4}}{re.escape(character)})"


def _base64(secret: bytes) -> list[str]:
    """Base64 of the secret at any offset in the encoded text, in both alphabets."""
    found = set()
    for before in range(3):
        text = base64.b64encode(b"\0" * before + secret).decode().rstrip("=")
        # The characters at the ends also contain bits of the neighboring bytes.
        text = text[(0, 2, 3)[before] : len(text) - ((before + len(secret)) % 3 > 0)]
        found |= {text, text.replace("+", "-").replace("/", "_")}
    return sorted(found)


def _decoded(text: str) -> str:
    """`text` with escapes decoded."""
    for _ in range(3):
        before = text
        if "%" in text:
            text = unquote(text, errors="replace")
        if "&" in text:
            text = html.unescape(text)
        if "\\" in text or "=" in text:
            text = _ESCAPE.sub(_character, text)
        if text == before:
            break
    return text


def _character(found: re.Match[str]) -> str:
    unicode, byte, octal, quoted = found.groups()
    return chr(int(octal, 8) if octal else int(unicode or byte or quoted, 16))
