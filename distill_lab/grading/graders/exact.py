"""Exact match: correct if the answer equals the gold answer, character by character after a careful normalization.

    Final Answer: 12.  against  12   -> 1          12.0 against 12 -> 0          paris against Paris -> 0

The answer is the text after the last `Final Answer:` (any case, Markdown stars allowed), otherwise the whole content;
thinking is ignored. Normalization of both sides: Unicode compatibility forms (full-width digits, ligatures, non-breaking
spaces) become their plain form; runs of whitespace become one space; the minus sign U+2212 becomes a hyphen; one final
period is dropped. Case matters. Numbers must be written the same way: `1,000`, `1000.0`, `01000` and `1000` all differ, and
superscripts, subscripts, fractions and circled digits stay unchanged (plain NFKC would turn 10² into 102).
"""

from __future__ import annotations

import re
import unicodedata

from distill_lab.grading.graders import gold_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC = "exact match"
MARKER = re.compile(r"final\s+answer\s*\**\s*[:：]\s*\**", re.IGNORECASE)
KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms whose value would change if they became plain digits."""


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold answer, 0 for anything else; `unparseable` if there is no answer.

    Raises UserError if the prompt has no gold answer.
    """
    gold = normalize(gold_answer(prompt, "exact"))
    if completion.finish_reason != "stop":
        return Grade(0.0, None, "unparseable")
    answer = read_answer(completion.content)
    if not answer:
        return Grade(0.0, None, "unparseable")
    return Grade(float(normalize(answer) == gold), answer)


def read_answer(content: str) -> str:
    """The text after the last `Final Answer:`, otherwise the whole content, stripped."""
    return MARKER.split(content)[-1].strip().removesuffix("**").rstrip()


def normalize(text: str) -> str:
    """Normalize an answer for comparison; see the top of this file."""
    plain = "".join(
        letter if unicodedata.decomposition(letter).startswith(KEPT) else unicodedata.normalize("NFKC", letter)
        for letter in unicodedata.normalize("NFC", text)
    )
    plain = " ".join(unicodedata.normalize("NFC", plain).replace("\u2212", "-").split())
    return plain[:-1].rstrip() if plain.endswith((".", "。")) else plain
