"""Classification: correct if the label is the gold label; ignores case, quotes, Markdown and a final period.

    Final Answer: **Spam**.  against  spam -> 1          It is spam, not ham.  (labels spam, ham)  -> unparseable

The label is the stated answer (`Final Answer: x`, `Label: x`, a box; see `distill_lab.answers`), otherwise the last line.
If `prompt.meta["labels"]` lists the allowed labels, the text may contain other words, but must contain exactly one label and
no negation; without the list, the whole stated text is the label.
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
"""Of a longer last line, only the end is read, because it is prose."""
_NAMED = re.compile(r"^\W{0,4}(?:label|class|category|classification|标签|类别)[*_ ]{0,4}[:：=]\s*", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|neither|nor|never|no)\b|n['’]t\b|不是|并非|没有", re.IGNORECASE)
_EDGES = " \t\n.。,;:：!?'\"`*_“”‘’«»()[]{}<>$"


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold label, 0 for another label; `unparseable` if there is not exactly one label.

    Raises UserError if the prompt has no gold answer, or its labels are not a list of texts that includes the gold label.
    """
    gold = normalize_label(gold_answer(prompt, "label"))
    labels = _labels(prompt, gold)
    answer = read_label(completion.content, labels) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(normalize_label(answer) == gold), answer)


def read_label(content: str, labels: tuple[str, ...] | None = None) -> str | None:
    """The label in a text, spelled as in `labels` if given, otherwise as in the text; None if there is none."""
    stated = stated_answer(content)
    if stated is None:
        lines = [line for line in after_thinking(content).splitlines() if line.strip(_EDGES)]
        stated = _NAMED.sub("", lines[-1].strip()[-MAX_CHARS:]) if lines else ""
    stated = stated.strip(_EDGES)[:MAX_CHARS]
    if not stated:
        return None
    if labels is None:
        return stated
    known = {normalize_label(label): label for label in labels}
    text = normalize_label(stated)
    if text in known:
        return known[text]
    pattern = _anywhere(tuple(known))
    found = set(pattern.findall(text))
    return known[found.pop()] if len(found) == 1 and not _DENIED.search(pattern.sub("", text)) else None


def normalize_label(text: str) -> str:
    """Normalize a label for comparison."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@lru_cache(maxsize=16)
def _anywhere(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any label as whole words; prefers the longest if one contains another (not spam, spam)."""
    either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return re.compile(rf"(?<![a-z0-9_])(?:{either})(?![a-z0-9_])")


def _labels(prompt: Prompt, gold: str) -> tuple[str, ...] | None:
    labels = prompt.meta.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"prompt {prompt.id}: meta 'labels' must be a non-empty list of texts")
    if gold not in map(normalize_label, labels):
        raise UserError(f"prompt {prompt.id}: its gold label {prompt.answer!r} is not among its labels {labels}")
    return tuple(labels)
