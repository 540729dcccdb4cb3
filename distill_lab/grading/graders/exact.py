"""Exact match: right when the answer is the gold answer, character by character after a careful normalisation.

    Final Answer: 12.  against  12   -> 1          12.0 against 12 -> 0          paris against Paris -> 0

The answer is what follows the last `Final Answer:` (any case, Markdown stars allowed), else the whole content; thinking
is never read. Normalisation, on both sides: Unicode compatibility forms (full-width digits, ligatures, non-breaking
spaces) become their plain form; runs of whitespace become one space; the minus sign U+2212 becomes a hyphen; one final
full stop is dropped. Case is kept. Nothing about numbers is forgiven: `1,000`, `1000.0`, `01000` and `1000` all differ,
and superscripts, subscripts, fractions and circled digits stay what they are (plain NFKC would read 10² as 102).
"""

from __future__ import annotations

import re
import unicodedata

from distill_lab.grading.graders import gold_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC = "exact match"
MARKER = re.compile(r"final\s+answer\s*\**\s*[:：]\s*\**", re.IGNORECASE)
KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms that change the value when they become plain digits."""


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold answer, 0 for anything else; `unparseable` where there is no answer at all.

    Raises UserError where the prompt has no gold answer.
    """
    gold = normalise(gold_answer(prompt, "exact"))
    if completion.finish_reason != "stop":
        return Grade(0.0, None, "unparseable")
    answer = read_answer(completion.content)
    if not answer:
        return Grade(0.0, None, "unparseable")
    return Grade(float(normalise(answer) == gold), answer)


def read_answer(content: str) -> str:
    """What follows the last `Final Answer:`, else the whole content, stripped."""
    return MARKER.split(content)[-1].strip().removesuffix("**").rstrip()


def normalise(text: str) -> str:
    """The form in which two answers are compared; see the top of this file."""
    plain = "".join(
        letter if unicodedata.decomposition(letter).startswith(KEPT) else unicodedata.normalize("NFKC", letter)
        for letter in unicodedata.normalize("NFC", text)
    )
    plain = " ".join(unicodedata.normalize("NFC", plain).replace("\u2212", "-").split())
    return plain[:-1].rstrip() if plain.endswith((".", "。")) else plain
