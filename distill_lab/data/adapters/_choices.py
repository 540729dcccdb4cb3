"""Multiple choice: the choices of a row in any of their forms, and which of them its gold answer means.

    found = find_choices({"question": "...", "choices": ["red", "blue"], "answer": 1})
    found.text()                                         # "A. red\\nB. blue"
    gold_label(row, found)                               # "B", read from the field answer

Forms: a list of texts (MMLU), `{"A": ..., "B": ...}`, `{"text": [...], "label": [...]}` (ARC), a list of `{"label",
"text"}`, BIG-bench's `target_scores`, and columns A, B, C, D or option_a, option_b or option1, option2.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from distill_lab.types import Fields, JsonObject

LISTS = ("choices", "options", "endings", "answer_choices", "target_scores")
GOLD = (
    "answer", "answerKey", "answer_key", "answer_idx", "answer_index", "correct", "correct_answer", "correct_option",
    "cop", "gold", "label", "target", "gold_answer", "true_answer", "target_scores",
)  # fmt: skip
"""Fields that say which choice is right."""
_COLUMN = re.compile(r"(?:(?P<word>option|choice|ending|opt|op)[ _]?)?(?P<label>[a-j]|\d)")
_LABELED = re.compile(r"\s*\(?(?P<label>[A-Z]|\d{1,2})\s?[.):]\s*(?P<text>.*)", re.DOTALL)
_LABEL_ONLY = re.compile(r"\W*(?P<label>[A-Za-z]|\d{1,2})\W*")


@dataclass(frozen=True)
class Choices:
    """The choices in their order."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    fields: tuple[str, ...]
    """The fields of the row that they come from."""

    def text(self) -> str:
        """One line per choice."""
        return "\n".join(f"{label}. {text}" for label, text in zip(self.labels, self.texts, strict=True))


def find_choices(row: Fields) -> Choices | None:
    """The choices of a row; None if it has none, or has them as one text. Raises ValueError if they cannot be read."""
    for field in LISTS:
        value = row.get(field)
        if value in (None, "", [], {}) or isinstance(value, str):
            continue
        if field == "target_scores" and not isinstance(value, dict):
            raise ValueError("field 'target_scores' must be an object with a score for each choice")
        labels, texts = _of_value(value, field)
        if len(texts) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"field {field!r} must have at least two choices with different labels")
        return Choices(tuple(labels), tuple(texts), (field,))
    return _of_columns(row)


def gold_label(row: Fields, choices: Choices) -> tuple[str | None, list[str]]:
    """The label of the right choice, and the fields that say it. Raises ValueError if they do not fit the choices."""
    found: dict[str, str] = {}
    for field in GOLD:
        value = row.get(field)
        if value in (None, "", [], {}) or (field in choices.fields and field != "target_scores"):
            continue
        label = _label(value, choices, field)
        if label is not None:
            found[field] = label
    if len(set(found.values())) > 1:
        raise ValueError(f"the fields {', '.join(found)} mean different choices ({', '.join(found.values())})")
    return next(iter(found.values()), None), list(found)


def _of_value(value: object, field: str) -> tuple[list[str], list[str]]:
    if isinstance(value, dict):
        texts, labels = value.get("text"), value.get("label")
        if isinstance(texts, list):
            if labels is None:
                return _letters(texts), _texts(texts, field)
            if not isinstance(labels, list) or len(labels) != len(texts):
                raise ValueError(f"field {field!r} has {len(texts)} texts, but not as many labels")
            return _texts(labels, field), _texts(texts, field)
        if field == "target_scores":
            return _letters(list(value)), list(value)
        present = {label: text for label, text in value.items() if text is not None}
        return list(present), _texts(list(present.values()), field)
    if not isinstance(value, list):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected a list of choices")
    if all(isinstance(item, dict) for item in value):
        named = [_named(item, field) for item in value]
        labels = [label for label, _ in named if label]
        texts = [text for _, text in named]
        return (labels if len(labels) == len(texts) else _letters(texts)), texts
    texts = _texts(value, field)
    labeled = [_LABELED.fullmatch(text) for text in texts]
    if all(labeled):
        pairs = [(match["label"], match["text"].strip()) for match in labeled if match]
        if [label for label, _ in pairs] in (_letters(texts), [str(number) for number in range(1, len(texts) + 1)]):
            return [label for label, _ in pairs], [text for _, text in pairs]
    return _letters(texts), texts


def _named(item: JsonObject, field: str) -> tuple[str, str]:
    def first(names: Sequence[str]) -> object:
        return next((item[name] for name in names if item.get(name) not in (None, "")), None)

    text = first(("text", "content", "value", "option", "choice"))
    label = first(("label", "key", "id", "letter"))
    return ("" if label is None else str(label)), _texts([text], field)[0]


def _of_columns(row: Fields) -> Choices | None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for field, value in row.items():
        match = _COLUMN.fullmatch(field.lower())
        if match and value not in (None, "") and (match["word"] or match["label"].isalpha()):
            groups.setdefault(f"{match['word'] or ''}{match['label'].isdigit()}", []).append((match["label"], field))
    for found in groups.values():
        found.sort()
        labels = [label.upper() for label, _ in found]
        known = (list(string.ascii_uppercase), [str(n) for n in range(1, 10)], [str(n) for n in range(10)])
        if len(found) > 1 and any(labels == order[: len(labels)] for order in known):
            fields = tuple(field for _, field in found)
            return Choices(tuple(labels), tuple(_texts([row[field] for field in fields], fields[0])), fields)
    return None


def _label(value: object, choices: Choices, field: str) -> str | None:
    """The label that a gold value means; None for a value that means that there is no gold answer (-1)."""
    if field == "target_scores":
        scores = list(value.values()) if isinstance(value, dict) else []
        right = [label for label, score in zip(choices.labels, scores, strict=False) if score == 1]
        if len(scores) != len(choices.labels) or len(right) != 1:
            raise ValueError("field 'target_scores' must give exactly one choice the score 1")
        return right[0]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value == -1:
            return None
        # Numbers count from 0, as in MMLU, unless the choices themselves are numbered.
        if str(value) in choices.labels:
            return str(value)
        if 0 <= value < len(choices.labels):
            return choices.labels[value]
        raise ValueError(
            f"field {field!r} is {value}, but the choices are numbered from 0 to {len(choices.labels) - 1}"
        )
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected a choice's label, number or text")
    return _label_of_text(value.strip(), choices, field)


def _label_of_text(value: str, choices: Choices, field: str) -> str:
    by_text = [label for label, text in zip(choices.labels, choices.texts, strict=True) if text.strip() == value]
    only = _LABEL_ONLY.fullmatch(value)
    labels = {label.upper(): label for label in choices.labels}
    by_label = labels.get(only["label"].upper()) if only else None
    by_number = None
    if value.isdigit() and by_label is None and int(value) < len(choices.labels):
        by_number = choices.labels[int(value)]
    meant = {label for label in (*by_text, by_label, by_number) if label is not None}
    if len(meant) > 1:
        raise ValueError(
            f"field {field!r} is {value!r}, which may mean the choices {' and '.join(sorted(meant))}; give the label"
        )
    if not meant:
        labeled = _LABELED.fullmatch(value)
        label = labels.get(labeled["label"]) if labeled else None
        if labeled and label and labeled["text"].strip() == choices.texts[choices.labels.index(label)].strip():
            return label
        raise ValueError(
            f"field {field!r} is {value[:60]!r}, which is not one of the choices {', '.join(choices.labels)}"
        )
    return meant.pop()


def _letters(items: Sequence[object]) -> list[str]:
    if len(items) > len(string.ascii_uppercase):
        raise ValueError(f"{len(items)} choices are more than there are letters")
    return list(string.ascii_uppercase[: len(items)])


def _texts(items: Sequence[object], field: str) -> list[str]:
    texts = [str(item) if isinstance(item, (int, float)) else item for item in items]
    found = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if len(found) < len(texts):
        raise ValueError(f"field {field!r} has a choice that is empty or not a text")
    return found
