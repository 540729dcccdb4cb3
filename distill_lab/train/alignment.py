"""Two tokenizations of one text cut into chunks at the places where both have a boundary.

    align([b"Hel", b"lo", b" world"], [b"Hello", b" wor", b"ld"])   -> chunks Hel|lo = Hello and  world = wor|ld

A chunk is the shortest piece of text that is whole tokens in both. Boundaries are counted in bytes, because tokens of many
vocabularies split characters. The texts may differ in one place, such as a space that one chat template adds, a think block
that only one writes, or a character that one tokenizer normalizes: what is before and after it is aligned all the same.

Shapes: N tokens of the student, M of the teacher, K chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_TOKENS = 64
"""Tokens of either side that a chunk may have; a likelihood of more is too small to learn from."""
OTHER_TEXT, TOO_MANY = -1, -2
"""In the place of a chunk's number: the token has no counterpart in the other's text; its chunk has too many tokens."""


@dataclass(frozen=True)
class Alignment:
    """Which chunk each token belongs to."""

    student_N: np.ndarray
    """int64, in [0, K), not descending, or OTHER_TEXT or TOO_MANY."""
    teacher_M: np.ndarray
    """As `student_N`."""
    num_chunks: int
    """K; each has at least one token of both sides."""


def align(student: Sequence[bytes], teacher: Sequence[bytes], *, max_tokens: int = MAX_TOKENS) -> Alignment:
    """The chunks of two tokenizations, given the bytes of their tokens."""
    texts = [np.frombuffer(b"".join(tokens), dtype=np.uint8) for tokens in (student, teacher)]
    ends = [np.cumsum([len(token) for token in tokens], dtype=np.int64) for tokens in (student, teacher)]
    before, after = _alike(texts[0], texts[1])
    bounds = [np.unique(np.append(0, each)) for each in ends]
    from_start = _common(*(each[each <= before] for each in bounds))
    sizes = [len(text) for text in texts]
    from_end = _common(*((size - each)[size - each <= after] for size, each in zip(sizes, bounds, strict=True)))
    if before == sizes[0] == sizes[1]:
        from_end = from_end[:0]
    cuts = [np.concatenate([from_start, (size - from_end)[::-1]]) for size in sizes]
    # A token belongs to the piece that it ends in. Pieces without bytes are the empty side of the place that differs.
    pieces = [np.searchsorted(cut, end, side="left") - 1 for cut, end in zip(cuts, ends, strict=True)]
    number = max(len(cuts[0]) - 1, 0)
    counts = [np.bincount(piece[piece >= 0], minlength=number) for piece in pieces]
    state_P = np.zeros(number, dtype=np.int64)
    state_P[(counts[0] > max_tokens) | (counts[1] > max_tokens)] = TOO_MANY
    state_P[(counts[0] == 0) | (counts[1] == 0)] = OTHER_TEXT
    place = len(from_start) - 1
    if len(from_end) and state_P[place] != OTHER_TEXT:
        differing = [text[cut[place] : cut[place + 1]].tobytes().strip() for text, cut in zip(texts, cuts, strict=True)]
        if differing[0] != differing[1] or not differing[0]:
            state_P[place] = OTHER_TEXT
    kept_P = state_P == 0
    number_P = np.where(kept_P, np.cumsum(kept_P) - 1, state_P)
    found = [np.where(piece >= 0, number_P[piece] if number else OTHER_TEXT, OTHER_TEXT) for piece in pieces]
    return Alignment(found[0], found[1], int(kept_P.sum()))


def _alike(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """Bytes that two texts have in common at their start and at their end, none of them counted twice."""
    shorter = min(len(left), len(right))
    before, after = (
        int(differs[0]) if len(differs) else shorter
        for differs in (
            np.flatnonzero(left[:shorter] != right[:shorter]),
            np.flatnonzero(left[len(left) - shorter :][::-1] != right[len(right) - shorter :][::-1]),
        )
    )
    if after == shorter > before:  # one text is the end of the other, as an answer after a think block
        return 0, after
    return before, min(after, shorter - before)


def _common(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The values that both have, ascending."""
    return np.intersect1d(left, right, assume_unique=True)
