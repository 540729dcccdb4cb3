"""completions.jsonl, read: one Completion after the other, every row checked, with its line and its place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distill_lab.errors import DataError
from distill_lab.files.jsonl import parse_json_object
from distill_lab.types import Completion


class Located(NamedTuple):
    """A completion and where it is in its file."""

    completion: Completion
    line: int
    """1-based."""
    offset: int
    """In bytes."""


def read_completions(path: Path) -> Iterator[Located]:
    """The completions of a JSONL file. Raises DataError with file, line and reason for any other row."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = parse_json_object(line, str(path), number)
                try:
                    completion = Completion.from_json(row)
                except KeyError as error:
                    raise DataError(str(path), number, f"not a completion: the field {error} is missing") from None
                if not isinstance(completion.id, str) or not isinstance(completion.content, str):
                    raise DataError(str(path), number, "the completion's id and content must be text")
                if not isinstance(completion.sample, int) or completion.sample < 0:
                    reason = f"`sample` must be a non-negative integer, got {completion.sample!r}"
                    raise DataError(str(path), number, reason)
                yield Located(completion, number, offset)
            offset += len(line)
