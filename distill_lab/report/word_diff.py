"""The words in which two texts differ: (one, other) -> both as HTML, with the words that only it has in <mark>.

one, other = marked("the cat sat", "the dog sat")        "the <mark>cat</mark> sat", "the <mark>dog</mark> sat"
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from distill_lab.formatting import shown

MAX_WORDS = 600
"""Of a text; longer ones are not compared."""


def marked(one: str, other: str) -> tuple[str, str]:
    """Both texts, escaped. Nothing is marked if they share no word, or if one of them is too long to compare."""
    pieces = [re.findall(r"\s+|[^\s]+", text) for text in (one, other)]
    if max(map(len, pieces)) > 2 * MAX_WORDS:
        return shown(one), shown(other)
    blocks = SequenceMatcher(None, *pieces, autojunk=False).get_matching_blocks()
    if not any(piece.strip() for block in blocks for piece in pieces[0][block.a : block.a + block.size]):
        return shown(one), shown(other)
    same = (
        {place for block in blocks for place in range(block.a, block.a + block.size)},
        {place for block in blocks for place in range(block.b, block.b + block.size)},
    )
    return _marked(pieces[0], same[0]), _marked(pieces[1], same[1])


def _marked(pieces: list[str], same: set[int]) -> str:
    """Pieces that are not in `same` in <mark>, neighbors together."""
    parts, run = [], ""
    for place, piece in enumerate(pieces):
        if place in same:
            parts += [_mark(run), shown(piece)]
            run = ""
        else:
            run += piece
    return "".join([*parts, _mark(run)])


def _mark(text: str) -> str:
    if not text.strip():
        return shown(text)
    return f"<mark>{shown(text)}</mark>"
