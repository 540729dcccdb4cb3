"""Exact match: correct if the answer equals the gold answer, character by character after a careful normalization.

    Final Answer: 12.  against  12   -> 1          12.0 against 12 -> 0          paris against Paris -> 0

The answer is the text after the last `Final Answer:` (any case, Markdown stars allowed), in `<answer>` tags or in a box,
otherwise the whole content; thinking, closing remarks and a new question are ignored. Normalization of both sides: Unicode
compatibility forms (full-width digits, ligatures, non-breaking spaces) become their plain form; runs of whitespace become
one space; the minus sign U+2212 becomes a hyphen; one final period is dropped. Quotes and Markdown around the whole answer
are ignored. Case matters. Numbers must be written the same way: `1,000`, `1000.0`, `01000` and `1000` all differ, and
superscripts, subscripts, fractions and circled digits stay unchanged (plain NFKC would turn 10² into 102).
"""

from __future__ import annotations

import re
import unicodedata

from distill_lab.answers import after_thinking, answer_part, last_box, retracted
from distill_lab.grading.graders import gold_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC = "exact match"
MARKER = re.compile(r"final\s+answer\s*\**\s*[:：]\s*\**", re.IGNORECASE)
KEPT = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms whose value would change if they became plain digits."""
_TAGS = re.compile(r"<(?:final[_ -]?)?answer>(.*?)(?:</(?:final[_ -]?)?answer>|\Z)", re.IGNORECASE | re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WRAPPED = re.compile(
    r"(?P<mark>\*\*\*|\*\*|\*|___|__|_|```|`|\"|'|\$\$|\$)(?P<inside>(?:(?!(?P=mark)).)+)(?P=mark)(?P<end>[.。]?)"
    r"|[“„«「『](?P<quoted>[^“”„«»「」『』]+)[”“»」』](?P<stop>[.。]?)|‘(?P<single>[^‘’]+)’(?P<last>[.。]?)",
    re.DOTALL,
)


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold answer, 0 for anything else; `unparseable` if there is no answer.

    Raises UserError if the prompt has no gold answer.
    """
    gold = normalize(gold_answer(prompt, "exact"))
    if completion.finish_reason != "stop":
        return Grade(0.0, None, "unparseable")
    whole = after_thinking(completion.content).strip()
    if whole and normalize(whole) == gold:
        return Grade(1.0, whole)
    answer = read_answer(completion.content)
    if not answer:
        return Grade(0.0, None, "unparseable")
    right = gold in (normalize(answer), normalize(unwrapped(answer)))
    return Grade(float(right), answer)


def read_answer(content: str) -> str:
    """The text after the last `Final Answer:`, in answer tags or in a box, otherwise all of the answer, stripped.

    "" if there is none, or the text takes it back.
    """
    text = answer_part(content)
    marks = list(MARKER.finditer(text))
    tags = list(_TAGS.finditer(text))
    if marks and (not tags or marks[-1].start() > tags[-1].start()):
        answer = text[marks[-1].end() :].strip()
        first, blank, rest = answer.partition("\n\n")
        if blank:
            answer = "" if retracted(rest) else first.strip()
        return answer.removesuffix("**").rstrip()
    if tags:
        return "" if retracted(text[tags[-1].end() :]) else tags[-1][1].strip()
    box = last_box(text)
    return _TEXT.sub(r"\1", box[1]).strip() if box else text.strip()


def unwrapped(text: str) -> str:
    """`text` without the quotes or the Markdown around all of it."""
    for _ in range(4):
        match = _WRAPPED.fullmatch(text.strip())
        if match is None:
            break
        text = match["inside"] or match["quoted"] or match["single"]
    return text.strip()


def normalize(text: str) -> str:
    """Normalize an answer for comparison; see the top of this file."""
    plain = "".join(
        letter if unicodedata.decomposition(letter).startswith(KEPT) else unicodedata.normalize("NFKC", letter)
        for letter in unicodedata.normalize("NFC", text)
    )
    plain = " ".join(unicodedata.normalize("NFC", plain).replace("\u2212", "-").split())
    return plain[:-1].rstrip() if plain.endswith((".", "。")) else plain
