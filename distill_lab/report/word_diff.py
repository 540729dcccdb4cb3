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
    pieces = [re.findall(r"\s+|\S+", text) for text in (one, other)]
    words = [[place for place, piece in enumerate(each) if piece.strip()] for each in pieces]
    if max(map(len, words)) > MAX_WORDS:
        return shown(one), shown(other)
    texts = [[each[place] for place in places] for each, places in zip(pieces, words, strict=True)]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    if not any(block.size for block in blocks):
        return shown(one), shown(other)
    same = (
        {words[0][place] for block in blocks for place in range(block.a, block.a + block.size)},
        {words[1][place] for block in blocks for place in range(block.b, block.b + block.size)},
    )
    return _marked(pieces[0], same[0]), _marked(pieces[1], same[1])


def _marked(pieces: list[str], same: set[int]) -> str:
    """The pieces; words that are not in `same` are marked, with the spaces between two of them."""
    parts, run = [], ""
    for place, piece in enumerate(pieces):
        is_space = not piece.strip()
        follows = place + 1 < len(pieces) and place + 1 not in same
        if (is_space and run and follows) or not (is_space or place in same):
            run += piece
            continue
        parts += [f"<mark>{shown(run)}</mark>" if run else "", shown(piece)]
        run = ""
    return "".join([*parts, f"<mark>{shown(run)}</mark>" if run else ""])
