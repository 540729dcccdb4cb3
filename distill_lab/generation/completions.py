"""completions.jsonl, read: one Completion after the other, every row checked, with its line and its place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distill_lab.errors import DataError
from distill_lab.files.jsonl import parse_json_object
from distill_lab.types import Completion, Fields

MAX_SAMPLES = 100_000
"""Largest number of samples of a prompt (`SamplingConfig.num_samples`)."""


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
                completion = checked_completion(parse_json_object(line, str(path), number), path, number)
                yield Located(completion, number, offset)
            offset += len(line)


def checked_completion(row: Fields, path: Path, number: int) -> Completion:
    """The completion in row `number` of a file. Raises DataError if the row is not one."""
    try:
        completion = Completion.from_json(row)
    except KeyError as error:
        raise DataError(str(path), number, f"not a completion: the field {error} is missing") from None
    except (TypeError, AttributeError) as error:
        raise DataError(str(path), number, f"not a completion ({error})") from None
    if not isinstance(completion.id, str) or not isinstance(completion.content, str):
        raise DataError(str(path), number, "the completion's id and content must be text")
    if type(completion.sample) is not int or not 0 <= completion.sample <= MAX_SAMPLES:
        shown = str(completion.sample)[:20]
        reason = f"`sample` must be a non-negative integer, got {shown}; it is at most {MAX_SAMPLES:,}"
        raise DataError(str(path), number, reason)
    if completion.finish_reason not in ("stop", "length", "error"):
        reason = f"`finish_reason` must be stop, length or error, got {completion.finish_reason!r}"
        raise DataError(str(path), number, reason)
    if type(completion.num_tokens) is not int or completion.num_tokens < 0:
        raise DataError(
            str(path), number, f"`num_tokens` must be a non-negative integer, got {completion.num_tokens!r}"
        )
    for name in ("thinking", "error"):
        if not isinstance(getattr(completion, name), (str, type(None))):
            raise DataError(str(path), number, f"`{name}` must be text or null")
    return completion
