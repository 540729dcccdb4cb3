"""JSON files of every shape: an array, an object per line, one object that holds the rows -> readers by split.

    readers = json_readers(Path("rows.json"))        {"": reader}, or {"train": reader, "test": reader}

The content decides, not the suffix, so an array named .jsonl is read whole. Arrays and lines are read in constant memory. A
single object is loaded whole: one row, `{"data": [rows]}`, `{"train": [rows], "test": [rows]}`, or columns as pandas and
`datasets` write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from distill_lab.data import adapters
from distill_lab.data._folders import split_word
from distill_lab.data._json_array import json_array
from distill_lab.data._row_types import Reader, Row
from distill_lab.data._text import open_text
from distill_lab.errors import DataError
from distill_lab.types import JsonObject

MAX_DOCUMENT_CHARS = 1 << 30
"""Maximum length of a file that is one JSON object."""
HINT = "a JSON file must be an array of objects, or one object per line"


class _Lines:
    """A file with a row on each line; blank lines are allowed."""

    def __init__(self, path: Path, encoding: str = "") -> None:
        self.path, self.encoding = path, encoding

    def num_rows(self) -> int:
        """How many rows there are."""
        with open_text(self.path, self.encoding) as file:
            return sum(1 for _ in _filled(file))

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        with open_text(self.path, self.encoding) as file:
            for index, (number, line) in islice(enumerate(_filled(file)), start, stop):
                yield self._row(index, number, line)

    def _row(self, index: int, number: int, line: str) -> Row:
        raise NotImplementedError


class JsonLines(_Lines):
    """One JSON object per line."""

    def _row(self, index: int, number: int, line: str) -> Row:
        return _parsed(index, number, line)


class TextLines(_Lines):
    """A .txt file: each line becomes a row `{"sentence": line}`."""

    def _row(self, index: int, number: int, line: str) -> Row:
        return Row(index, number, {"sentence": line})


class JsonArray:
    """An array of objects."""

    def __init__(self, path: Path, encoding: str = "") -> None:
        self.path, self.encoding = path, encoding

    def num_rows(self) -> int:
        """How many rows there are."""
        with open_text(self.path, self.encoding) as file:
            return sum(1 for _ in json_array(file, str(self.path)))

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        with open_text(self.path, self.encoding) as file:
            for index, (number, fields, reason) in islice(enumerate(json_array(file, str(self.path))), start, stop):
                yield Row(index, number, fields, reason)


@dataclass(frozen=True)
class Loaded:
    """Rows that are in memory."""

    items: Sequence[object]

    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.items)

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        for index, item in islice(enumerate(self.items), start, stop):
            if isinstance(item, dict):
                yield Row(index, None, item)
            else:
                yield Row(index, None, None, f"expected a JSON object, found {_kind(item)}")


def json_readers(path: Path, encoding: str = "") -> dict[str, Reader]:
    """The readers of a JSON file by split; the key "" means that the file has a single split. Raises DataError."""
    with open_text(path, encoding) as file:
        lines = _filled(file)
        _, first = next(lines, (0, ""))
        if first.startswith("["):
            return {"": JsonArray(path, encoding)}
        second = next(lines, (0, ""))[1]
        row = _object(first)
        if not first.startswith("{") or (row is not None and second) or _object(second) is not None:
            return {"": JsonLines(path, encoding)}
    documents = [row] if row is not None else _documents(path, encoding)
    if len(documents) != 1:
        return {"": Loaded(documents)} if documents else {"": JsonLines(path, encoding)}
    try:
        found = rows_of(documents[0])
    except ValueError as error:
        raise DataError(str(path), None, str(error)) from None
    if row is not None and list(found.values()) == [[row]]:
        return {"": JsonLines(path, encoding)}  # a single row, with its line
    return {split: Loaded(items) for split, items in found.items()}


def rows_of(document: JsonObject) -> dict[str, Sequence[object]]:
    """The rows in one JSON object, by split. Raises ValueError if it may mean several things."""
    values = list(document.values())
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return {"": [dict(zip(map(str, names), row, strict=False)) if len(row) == len(names) else row for row in data]}
    objects = {name: value for name, value in document.items() if isinstance(value, dict)}
    if values and len(objects) == len(values):
        return {"": _pandas(objects)}
    columns = [value for value in values if isinstance(value, list)]
    if len(values) > 1 and len(columns) == len(values):
        lengths = {len(column) for column in columns}
        scalars = any(not isinstance(item, dict) for column in columns for item in column)
        if len(lengths) == 1 and scalars:
            return {"": [dict(zip(document, row, strict=True)) for row in zip(*columns, strict=True)]}
    if adapters.choose(document) is not None or any(map(_is_conversation, values)):
        return {"": [document]}
    lists: dict[str, Sequence[object]] = {
        name: value
        for name, value in document.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    if len(lists) == len(values) > 1 and not all(map(split_word, lists)):
        return {"": [document]}
    if len(lists) > 1 and len(lists) < len(values):
        raise ValueError(
            f"the file has several lists of rows ({', '.join(lists)}) beside other fields; save one of them as a file"
        )
    if len(lists) == 1:
        return {"": next(iter(lists.values()))}
    return lists or {"": [document]}


def _is_conversation(value: object) -> bool:
    """Whether a value is a list of turns, which is a field of one row and not the rows of a file."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in value
    )


def _pandas(document: Mapping[str, JsonObject]) -> Sequence[object]:
    """`DataFrame.to_json()`: columns of {row: value}, or with orient="index" rows of {column: value}."""
    first, *others = document.values()
    same = all(column.keys() == first.keys() for column in others)
    if first and same and all(name.isdigit() for name in first):
        return [{name: column[number] for name, column in document.items()} for number in first]
    if all(name.isdigit() for name in document) or adapters.choose(first) is not None:
        return list(document.values())
    return [document]


def _documents(path: Path, encoding: str) -> list[JsonObject]:
    """The objects that follow each other in a file, each over several lines; empty if that is not what the file is."""
    with open_text(path, encoding) as file:
        text = file.read(MAX_DOCUMENT_CHARS + 1)
    if len(text) > MAX_DOCUMENT_CHARS:
        reason = f"one object of more than {MAX_DOCUMENT_CHARS} characters; write one row per line as .jsonl"
        raise DataError(str(path), 1, reason)
    decoder, position, found = json.JSONDecoder(), 0, []
    while True:
        position = len(text) - len(text[position:].lstrip())
        if position == len(text):
            return found
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)


def _filled(file: TextIO) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their 1-based numbers."""
    for number, line in enumerate(file, start=1):
        if line := line.strip(" \t\n\r\ufeff"):
            yield number, line


def _object(line: str) -> JsonObject | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parsed(index: int, number: int, line: str) -> Row:
    try:
        # NaN and Infinity, which are not JSON but which Python and pandas write, are read as numbers.
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(index, number, None, f"not a JSON object ({error}); {HINT}")
    if not isinstance(row, dict):
        return Row(index, number, None, f"expected a JSON object, found {_kind(row)}; {HINT}")
    return Row(index, number, row)


def _kind(value: object) -> str:
    return type(value).__name__
