"""Overlap with a reference: ROUGE-L, for free text without a single correct answer.

    the cat sat on the mat  against  the cat lay on a mat   -> 2/3 (the, cat, on, mat of 6 words each)

ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1, with beta = 1): the longest
common subsequence of words as a fraction of the answer (precision P) and of the reference (recall R), F1 = 2PR / (P + R).
Words are runs of letters, marks and digits, with compatibility forms normalized and case folded; in scripts without spaces
(Han, kana, Thai, Lao, Khmer, Burmese), each letter is a word. Punctuation is ignored. It rewards shared wording, not truth:
use it to measure how close a student stays to its reference, never as accuracy.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from distill_lab.grading.graders import gold_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC, SIMILARITY = "ROUGE-L overlap with the reference text", True
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Prefixes of Unicode letter names in scripts without spaces between words."""


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """ROUGE-L F1 of the content against `prompt.answer`, in [0, 1]; `unparseable` if there is no content.

    Raises UserError if the prompt has no reference.
    """
    reference = gold_answer(prompt, "overlap")
    answer = completion.content.strip()
    if completion.finish_reason != "stop" or not answer:
        return Grade(0.0, None, "unparseable")
    return Grade(rouge_l(answer, reference), answer)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 of two texts, in [0, 1]. Texts without words (only punctuation) are 1 if equal, otherwise 0."""
    found, expected = words(answer), words(reference)
    if not found or not expected:
        return float(answer.split() == reference.split())
    return 2 * common_length(found, expected) / (len(found) + len(expected))


def words(text: str) -> list[str]:
    """The words of a text, as defined at the top of this file."""
    found, word = [], []
    for letter in unicodedata.normalize("NFKC", text).casefold() + " ":
        kind = unicodedata.category(letter)[0]
        if kind == "M" and not word and found:
            found[-1] += letter
            continue
        joins = kind in "LNM"
        alone = kind == "L" and not letter.isascii() and unicodedata.name(letter, "").startswith(UNSPACED)
        if word and (alone or not joins):
            found.append("".join(word))
            word = []
        if alone:
            found.append(letter)
        elif joins:
            word.append(letter)
    return found


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one bit per word (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"): thousands of words against thousands take milliseconds."""
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(first) - row.bit_count()
