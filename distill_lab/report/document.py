"""An HTML page in one file: title, body, style, script and data -> text that loads nothing from anywhere.

    document("A title", body, style=PAGE_STYLE)
    document("A title", body, style=PAGE_STYLE, script=code, data={"items": [...]})

The page's own policy allows exactly this style sheet and this script, by their hashes: what else got into the page, from a
model or from data, could neither run nor load. Data are JSON in blocks that a browser does not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import sys
import unicodedata
from pathlib import Path

from distill_lab.files.jsonl import atomic_path
from distill_lab.formatting import KEPT, shown
from distill_lab.types import Fields

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>{body}{data}{script}</body>
</html>
"""
POLICY = (
    "default-src 'none'; style-src '{style}'; script-src {script}; img-src data:; base-uri 'none'; form-action 'none'"
)


def document(title: str, body: str, *, style: str, script: str = "", data: Fields | None = None) -> str:
    """The page's text. body: HTML in which all text from outside is escaped. data: id of a block -> JSON value."""
    policy = POLICY.format(style=digest(style), script=f"'{digest(script)}'" if script else "'none'")
    blocks = "".join(
        f'<script type="application/json" id="{name}">{json_block(value)}</script>\n'
        for name, value in (data or {}).items()
    )
    return PAGE.format(
        policy=policy,
        title=shown(title),
        style=style,
        body=body,
        data=blocks,
        script=f"<script>{script}</script>" if script else "",
    )


def write_document(path: Path, text: str) -> None:
    """Write a page, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def digest(text: str) -> str:
    """The hash of an inline style sheet or script as a policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_block(value: object) -> str:
    """JSON that ends no HTML element: `<`, `>`, `&` and the line separators of JavaScript are escaped in its texts."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def fast_clean(text: str) -> str:
    """`formatting.clean` that keeps tabs too, for megabytes of text."""
    return _unwanted().sub("", text)


@functools.cache
def _unwanted() -> re.Pattern[str]:
    kept = KEPT + "\t"
    numbers = [
        number
        for number in range(sys.maxunicode + 1)
        if chr(number) not in kept and unicodedata.category(chr(number)) in ("Cc", "Cf", "Cs")
    ]
    return re.compile("[" + "".join(f"\\U{number:08x}" for number in numbers) + "]")
