"""The user's own names: `prompt=question,answer=gold` renames the columns of any row to fields that the adapters read.

columns = Columns.parse("prompt=title+body,answer=result.text,ignore=notes")
columns.check({"title", "body", "result", "notes"}, "rows.csv")
columns.apply({"title": "Add", "body": "1+1", "result": {"text": "2"}, "notes": "x", "level": 3})
# {"prompt": "Add\n\n1+1", "answer": "2", "level": 3}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from distill_lab.data._row_types import Unusable
from distill_lab.errors import UserError
from distill_lab.types import Fields, JsonObject

IGNORE = "ignore"
TARGETS = (
    "prompt", "completion", "answer", "thinking", "system", "context", "choices", "tools", "messages", "chosen",
    "rejected", IGNORE,
)  # fmt: skip
TEXTS = ("prompt", "completion", "thinking", "system", "context")
"""Targets that are text: numbers become text, several columns are joined by a blank line."""


@dataclass(frozen=True)
class Columns:
    """Which columns each field is made from."""

    sources: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Columns:
        """Read `target=column,target=column+column`. Raises UserError naming what is wrong."""
        sources: dict[str, tuple[str, ...]] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            target, equals, columns = (piece.strip() for piece in part.partition("="))
            names = tuple(name.strip() for name in columns.split("+"))
            if not equals or not all(names):
                raise UserError(
                    f"--data.columns {text!r}: {part!r} is not TARGET=COLUMN; write prompt=question,answer=gold"
                )
            if target not in TARGETS:
                raise UserError(f"--data.columns {text!r}: no target {target!r}; choose from {', '.join(TARGETS)}")
            if target in sources:
                raise UserError(f"--data.columns {text!r}: {target!r} occurs twice; join columns with +: {target}=a+b")
            if len(names) > 1 and target not in (*TEXTS, IGNORE):
                raise UserError(f"--data.columns {text!r}: {target!r} is one column; only texts can be joined")
            sources[target] = names
        return cls(sources)

    @property
    def adapter(self) -> str | None:
        """The adapter that reads the renamed rows; None if the mapping leaves the question as it is."""
        if "messages" in self.sources:
            return "messages"
        return "prompt_completion" if "prompt" in self.sources else None

    def check(self, found: Iterable[str], path: str) -> None:
        """Raise UserError for a column that no row has, with the list of those found."""
        known = set(found)
        for names in self.sources.values():
            for name in names:
                if name not in known and name.partition(".")[0] not in known:
                    listed = ", ".join(sorted(known)) or "none"
                    raise UserError(f"{path}: no column {name!r} for --data.columns; the columns found are {listed}")

    def apply(self, fields: Fields) -> JsonObject:
        """The row with its columns renamed; a column that only has a target's name is kept as `NAME (not mapped)`."""
        if not self.sources:
            return dict(fields)
        taken = {
            name if name in fields else name.partition(".")[0] for names in self.sources.values() for name in names
        }
        row: JsonObject = {}
        for target, names in self.sources.items():
            values = [value for value in (_value(fields, name) for name in names) if value is not None]
            if target != IGNORE and values:
                row[target] = _joined(target, values)
        for name, value in fields.items():
            if name not in taken:
                row[f"{name} (not mapped)" if name in self.sources else name] = value
        return row


def _value(fields: Fields, name: str) -> object:
    """A column, or what a dotted name leads to inside of it; None if there is nothing."""
    if name in fields:
        return fields[name]
    first, *rest = name.split(".")
    value = fields.get(first)
    for part in rest:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _joined(target: str, values: list[object]) -> object:
    if target not in TEXTS or any(isinstance(value, Unusable) for value in values):
        return next((value for value in values if isinstance(value, Unusable)), values[0])
    given = [str(value) if isinstance(value, (int, float)) else value for value in values]
    texts = [text for text in given if isinstance(text, str)]
    if len(given) == 1 or len(texts) < len(given):
        return given[0] if len(given) == 1 else given
    return "\n\n".join(text for text in texts if text.strip())
