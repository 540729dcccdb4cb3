"""Classification: right when the label is the gold label. Case, quotes, Markdown and a final full stop do not count.

    Final Answer: **Spam**.  against  spam -> 1          It is spam, not ham.  (labels spam, ham)  -> unparseable

The label is what the text states (`Final Answer: x`, `Label: x`, a box; see `distill_lab.answers`), else its last line.
`prompt.meta["labels"]`, where there, lists the labels there are: then the label may stand among other words, but exactly
one of them must, and not denied; without the list the stated text is the label as a whole.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from distill_lab.answers import after_thinking, stated_answer
from distill_lab.errors import UserError
from distill_lab.grading.graders import gold_answer
from distill_lab.types import Completion, Grade, Prompt

METRIC = "label accuracy"
MAX_CHARS = 400
"""A last line that is longer is prose, and its end is read."""
_NAMED = re.compile(r"^\W{0,4}(?:label|class|category|classification|标签|类别)[*_ ]{0,4}[:：=]\s*", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|neither|nor|never|no)\b|n['’]t\b|不是|并非|没有", re.IGNORECASE)
_EDGES = " \t\n.。,;:：!?'\"`*_“”‘’«»()[]{}<>$"


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold label, 0 for another one; `unparseable` where there is no label, or no single one.

    Raises UserError where the prompt has no gold answer, its list of labels is no list of texts, or lacks the gold one.
    """
    gold = normalise(gold_answer(prompt, "label"))
    labels = _labels(prompt, gold)
    answer = read_label(completion.content, labels) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(normalise(answer) == gold), answer)


def read_label(content: str, labels: tuple[str, ...] | None = None) -> str | None:
    """The label a text gives, spelled as in `labels` where they are given (else as it stands); None where it gives none."""
    stated = stated_answer(content)
    if stated is None:
        lines = [line for line in after_thinking(content).splitlines() if line.strip(_EDGES)]
        stated = _NAMED.sub("", lines[-1].strip()[-MAX_CHARS:]) if lines else ""
    stated = stated.strip(_EDGES)[:MAX_CHARS]
    if not stated:
        return None
    if labels is None:
        return stated
    known = {normalise(label): label for label in labels}
    text = normalise(stated)
    if text in known:
        return known[text]
    pattern = _anywhere(tuple(known))
    found = set(pattern.findall(text))
    return known[found.pop()] if len(found) == 1 and not _DENIED.search(pattern.sub("", text)) else None


def normalise(text: str) -> str:
    """The form in which two labels are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@lru_cache(maxsize=16)
def _anywhere(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the labels as whole words, the longest where one holds another (not spam, spam)."""
    either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return re.compile(rf"(?<![a-z0-9_])(?:{either})(?![a-z0-9_])")


def _labels(prompt: Prompt, gold: str) -> tuple[str, ...] | None:
    labels = prompt.meta.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"prompt {prompt.id}: meta 'labels' is no list of texts; list the labels there are")
    if gold not in map(normalise, labels):
        raise UserError(f"prompt {prompt.id}: its gold label {prompt.answer!r} is not among its labels {labels}")
    return tuple(labels)
