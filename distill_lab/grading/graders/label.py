"""Classification: correct if the label is the gold label; ignores case, quotes, Markdown and a final period.

    Final Answer: **Spam**.  against  spam -> 1          It is spam, not ham.  (labels spam, ham)  -> unparseable

The label is the stated answer (`Final Answer: x`, `Label: x`, a box; see `distill_lab.answers`), otherwise the last line, or
the first if that is a label and the rest explains it. If `prompt.meta["labels"]` lists the allowed labels, the text may
contain other words, but must contain exactly one label that nothing denies or leaves open; a label that comes first, before
a comma or a period, may be followed by any reason. A letter is a label only if it is written as one: the article in "This is
a hard question" is not. Without the list, the label is the whole text, or what precedes the reason.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from distill_lab.answers import answer_part, find_statement, retracted
from distill_lab.errors import UserError
from distill_lab.grading.graders import BadGoldError, gold_answer
from distill_lab.grading.graders._doubt import denied, hedged
from distill_lab.types import Completion, Grade, Prompt

METRIC = "label accuracy"
MAX_CHARS = 400
"""Of a longer last line, only the end is read, because it is prose."""
_NAMED = re.compile(
    r"^\W{0,6}(?:(?:final|predicted|correct|my|the|best|overall)\s+){0,2}(?:label|class|category|classification|prediction|verdict|sentiment|choice|option"
    r"|标签|类别|分类)[*_ ]{0,4}(?:[:：=]|\bis\b|是|为)[*_ \t]*(?P<label>.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_EDGES = " \t\n.。,;:：!?？'\"`*_“”‘’«»()[]{}<>$"
_REASON = re.compile(
    r"\s*(?:[,.;:!)\]—–(]|[*_`\"'”’]+\s*(?:[,.;:!—–(-]|$)|\s-\s|$)|\s+(?:because|since|as|for|due to|given)\b"
    r"|\s*[，。；：！]"
)
"""After a leading label: what follows is a reason."""
_CLAIM = re.compile(r"[\s)\]}*_`\"'”’]*(?:is|was|can|cannot|could|would|does|will|may|might)(?:\b|n't)", re.IGNORECASE)
"""After a leading label: a sentence about the label."""
_POINTED = re.compile(
    r"\b(?:answer|option|choice|choose|pick|select|label|letter|class|category|go with|it['’]s|is|be|are"
    r"|say|so|thus|hence|therefore|and|or|not|to)\b[\W_]*$",
    re.IGNORECASE,
)
_NAMED_LETTER = re.compile(r"\b(?:answer|option|choice|letter|label|class|category)\b(?:\s+is)?[\W_]*$", re.IGNORECASE)
_DETERMINER = re.compile(
    r"\s+(?!(?:because|since|as|it|this|that|he|she|they|there|the|i|we|you)\b)[A-Za-z]", re.IGNORECASE
)
_DETERMINERS = frozenset(("no", "none", "any", "some", "other", "all", "both", "neither", "either"))
_RIVAL = re.compile(r"\b(?:or|and|/|&|versus|vs)\b", re.IGNORECASE)


def grade(prompt: Prompt, completion: Completion) -> Grade:
    """1 for the gold label, 0 for another label; `unparseable` if there is not exactly one label.

    Raises UserError if the prompt has no gold answer or its labels are not a list of texts, BadGoldError if the gold label
    is not among them.
    """
    gold = normalize_label(gold_answer(prompt, "label"))
    labels = _labels(prompt, gold)
    answer = read_label(completion.content, labels) if completion.finish_reason == "stop" else None
    if answer is None:
        return Grade(0.0, None, "unparseable")
    return Grade(float(normalize_label(answer) == gold), answer)


def read_label(content: str, labels: tuple[str, ...] | None = None) -> str | None:
    """The label in a text, spelled as in `labels` if given, otherwise as in the text; None if there is none."""
    statement = find_statement(content)
    if statement is not None:
        return _one(statement.text, labels)
    text = answer_part(content)
    named = list(_NAMED.finditer(text))
    if named:
        found = {_one(match["label"], labels) for match in named}
        first = normalize_label(text.strip().partition("\n")[0])
        if labels and first in map(normalize_label, labels):
            found.add(next(label for label in labels if normalize_label(label) == first))
        return found.pop() if len(found) == 1 and not retracted(text[named[-1].end() :]) else None
    lines = [line for line in text.splitlines() if line.strip(_EDGES)]
    if not lines:
        return None
    last = _one(lines[-1].strip()[-MAX_CHARS:], labels)
    if labels is None or len(lines) == 1:
        return last
    known = {normalize_label(label): label for label in labels}
    first = known.get(normalize_label(lines[0]))
    if first is None or first == last:
        return last
    rest = "\n".join(lines[1:])
    return first if last is None and not _occurring(rest, known, but=first) and not retracted(rest) else None


def _one(stated: str, labels: tuple[str, ...] | None) -> str | None:
    """The one label that a stated text gives."""
    whole = stated.strip(_EDGES)[:MAX_CHARS]
    if not whole or stated.rstrip(_EDGES.replace("?", "").replace("？", "")).endswith(("?", "？")):
        return None
    if labels is None:
        first = re.split(r"[,.;:!](?=\s)|\s[—–-]\s|\s+(?:\(|because\b|since\b)", whole, maxsplit=1)
        if len(first) == 1:
            return whole
        return None if hedged(whole[len(first[0]) :]) or not first[0].strip(_EDGES) else first[0].strip(_EDGES)
    known = {normalize_label(label): label for label in labels}
    if normalize_label(whole) in known:
        return known[normalize_label(whole)]
    text = unicodedata.normalize("NFKC", stated)[: 2 * MAX_CHARS].replace("’", "'")
    found = _occurrences(text, known)
    names = {label for label, _, _ in found}
    if len(names) != 1:
        return None
    label, start, end = found[0]
    rest = text[end:]
    if not text[:start].strip(_EDGES) and _REASON.match(rest) and not _CLAIM.match(rest):
        return (
            None
            if hedged(rest) or _RIVAL.match(rest.strip(_EDGES)) or rest.lstrip(" *_`\"'").startswith("?")
            else label
        )
    others = _outside(text, found)
    return None if denied(others) or hedged(others) else label


def _occurring(text: str, known: dict[str, str], *, but: str) -> bool:
    return any(label != but for label, _, _ in _occurrences(text, known))


def _occurrences(text: str, known: dict[str, str]) -> list[tuple[str, int, int]]:
    """Labels that `text` gives as labels, with their places."""
    found = []
    for match in _anywhere(tuple(known)).finditer(text):
        name = normalize_label(match[0])
        before, after = text[: match.start()], text[match.end() :]
        if len(name) == 1 and name.isascii() and name.isalpha() and not _is_letter_label(match[0], before, after):
            continue
        if name in _DETERMINERS and _DETERMINER.match(after):
            continue
        found.append((known[name], match.start(), match.end()))
    return found


def _is_letter_label(letter: str, before: str, after: str) -> bool:
    """Whether a letter is written as a label, not as an article or a pronoun."""
    if before[-1:] in ("(", "[", "{", "*", '"', "'", "`", "“") and after[:1] in (
        ")",
        "]",
        "}",
        "*",
        '"',
        "'",
        "`",
        "”",
        ".",
    ):
        return True
    if not letter.isupper() and before.strip():
        return not after.strip(_EDGES) and bool(_NAMED_LETTER.search(before))
    if re.match(r"\.\w", after):
        return False
    if re.match(r"\s*$|[).:,;!*\]\"`]|'(?!\w)", after):
        alone = not before.strip(_EDGES)
        return alone or (letter.isupper() and (bool(_POINTED.search(before)) or before.rstrip()[-1:] in ":：=,.(-/&|+"))
    if re.match(r"\s*[-–—]\s|\s+(?:because|since|or|and)\b|\s*[/&]", after):
        return letter.isupper()
    return letter.isupper() and bool(_NAMED_LETTER.search(before))


def _outside(text: str, found: list[tuple[str, int, int]]) -> str:
    """The text without the labels in it."""
    parts, end = [], 0
    for _, start, stop in found:
        parts.append(text[end:start])
        end = stop
    return " … ".join([*parts, text[end:]])


def normalize_label(text: str) -> str:
    """Normalize a label for comparison."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


@lru_cache(maxsize=16)
def _anywhere(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any label as whole words; prefers the longest if one contains another (not spam, spam)."""
    either = "|".join(r"\s+".join(map(re.escape, label.split())) for label in sorted(labels, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9_])(?<![A-Za-z]-)(?:{either})(?![A-Za-z0-9_])(?!-[A-Za-z])", re.IGNORECASE)


def _labels(prompt: Prompt, gold: str) -> tuple[str, ...] | None:
    labels = prompt.meta.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"prompt {prompt.id}: meta 'labels' must be a non-empty list of texts")
    if gold not in map(normalize_label, labels):
        raise BadGoldError(f"prompt {prompt.id}: its gold label {prompt.answer!r} is not among its labels {labels}")
    return tuple(labels)
