"""What sources and readers give: rows with their place, and values that have no JSON form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from distill_lab.types import JsonObject


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: its fields, or the reason why it has none."""

    index: int
    """0-based position among the source's rows; counts malformed rows but not blank lines."""
    line: int | None
    """1-based line where the row starts, in text files."""
    fields: JsonObject | None
    reason: str = ""
    file: str = ""
    """The file it is from, if the source has several."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A value that cannot be converted to JSON, and why. It refuses a row only if something reads the field."""

    reason: str


class Reader(Protocol):
    """The rows of one file or one split."""

    def num_rows(self) -> int:
        """Number of rows."""
        ...

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows from `start` up to but not including `stop` (None: to the end). Raises UserError, DataError."""
        ...
