"""Tables as text: .csv and .tsv files as Excel, pandas and databases write them -> rows, in constant memory.

The delimiter is found from the first lines (comma, semicolon, tab, |) unless it is given. A first line `sep=;`, as Excel
writes it, is followed. Columns without a name (a pandas index, empty columns at the end) are called "column 1" and so on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from distill_lab.data._row_types import Row
from distill_lab.data._text import open_text
from distill_lab.errors import DataError, UserError

DELIMITERS = (",", ";", "\t", "|")
"""Tried in this order if none is given."""
NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
SNIFF_ROWS = 20
SNIFF_CHARS = 1 << 16
MAX_FIELD_CHARS = 64 * 2**20
"""Maximum length of a field."""


class Csv:
    """A file with a header line; values may be quoted with " and then contain line breaks."""

    def __init__(self, path: Path, *, delimiter: str = "", encoding: str = "") -> None:
        self.path, self.encoding = path, encoding
        self.delimiter = NAMED_DELIMITERS.get(delimiter, delimiter)
        if len(self.delimiter) > 1 or self.delimiter in ("\n", "\r", '"'):
            raise UserError(f"invalid delimiter {delimiter!r}; give one character, or tab")

    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(1 for _ in self._rows())

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        return islice(self._rows(), start, stop)

    def _rows(self) -> Iterator[Row]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
        with open_text(self.path, self.encoding, newline="") as file:
            lines, delimiter, line = _delimited(file, self.delimiter)
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            skipped, index = line - 1, 0
            header: list[str] = []
            try:
                for values in reader:
                    if not any(value.strip() for value in values):
                        pass  # a blank line, or the rows of nothing but delimiters that Excel leaves at the end
                    elif not header:
                        header = self._header(values, line)
                    else:
                        yield _row(index, line, header, values)
                        index += 1
                    line = skipped + reader.line_num + 1
            except csv.Error as error:
                reason = f"row {index}: the quotes do not match ({error}); the rest of the file cannot be read"
                raise DataError(str(self.path), line, reason) from None

    def _header(self, values: list[str], line: int) -> list[str]:
        names = [value.strip() for value in values]
        while names and not names[-1]:
            names.pop()
        names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            reason = (
                f"the header has repeated names ({', '.join(map(repr, repeated))}); give each column a separate name"
            )
            raise DataError(str(self.path), line, reason)
        return names


def _row(index: int, line: int, header: list[str], values: list[str]) -> Row:
    rest = [value for value in values[len(header) :] if value.strip()]
    if len(values) < len(header) or rest:
        return Row(index, line, None, f"{len(values)} values, but the header has {len(header)}")
    return Row(index, line, dict(zip(header, values, strict=False)))


def _delimited(file: TextIO, given: str) -> tuple[Iterator[str], str, int]:
    """The lines from the header on, the delimiter, and the number of the first of these lines."""
    head = list(islice(_limited(file), SNIFF_ROWS))
    number = 1
    if head and head[0].lower().startswith("sep=") and len(head[0].strip()) == 5:
        given, head, number = given or head[0][4], head[1:], 2
    return chain(head, file), given or _sniff(head), number


def _limited(file: TextIO) -> Iterator[str]:
    """Lines, until they are SNIFF_CHARS long together."""
    length = 0
    while length < SNIFF_CHARS and (line := file.readline()):
        length += len(line)
        yield line


def _sniff(head: list[str]) -> str:
    """The delimiter with which most of the first rows have as many values as the header, which has more than one."""
    best, best_share = DELIMITERS[0], 0.0
    for delimiter in DELIMITERS:
        rows: list[int] = []
        with suppress(csv.Error):  # a quoted value that goes on after these lines, or damage that the reader will name
            for values in csv.reader(head, strict=True, delimiter=delimiter):
                rows += [len(values)] if values else []
        if not rows or rows[0] < 2:
            continue
        share = sum(width == rows[0] for width in rows) / len(rows)
        if share > best_share:
            best, best_share = delimiter, share
    return best
