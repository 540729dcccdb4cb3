"""Read data sets as prompts: file, hub id or tiny task -> Records, streaming -> prompts.jsonl.

    counts = write_prompts(DataConfig(path="data.jsonl", split="train[:1000]"), Path("prompts.jsonl"))

An adapter converts each row of the slice. A malformed row raises a DataError that names file, line and row; with
`skip_invalid` it is skipped and counted. A record's id is its split's name and its row number in the source.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.sources import Row, Source, open_source
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.types import Counts, Record

MAX_KEPT_ERRORS = 100
SPLIT = re.compile(r"(?P<name>[\w.-]+)\s*(\[\s*(?P<start>-?\d+%?)?\s*:\s*(?P<stop>-?\d+%?)?\s*\])?")


@dataclass(frozen=True, slots=True)
class Slice:
    """A parsed split: its name and two bounds, each a row number or a percentage; negative ones count from the end."""

    name: str
    start: str | None
    stop: str | None

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Parse `train`, `train[:1000]`, `train[10%:20%]`, `train[-100:]`. Raises UserError for anything else."""
        match = SPLIT.fullmatch(text.strip())
        bounds = (match["start"], match["stop"]) if match else ()
        if match is None or any(bound and "%" in bound and abs(int(bound[:-1])) > 100 for bound in bounds):
            forms = "train, train[:1000], train[500:], train[500:1000], train[-100:], train[10%:20%]"
            raise UserError(f"invalid split {text!r}; write it like one of {forms}")
        return cls(match["name"], *bounds)

    def bounds(self, source: Source) -> tuple[int, int | None]:
        """Row numbers (start, stop); stop None means the end. Percentages round to the nearest row, as in `datasets`.

        Uses the source's length only if a bound needs it. Raises UserError if the length is unknown.
        """
        relative = any(bound and ("%" in bound or "-" in bound) for bound in (self.start, self.stop))
        length = source.num_rows(self.name) if relative else None
        start = _row_number(self.start, length) if self.start else 0
        stop = _row_number(self.stop, length) if self.stop else None
        return start, stop if stop is None else max(start, stop)


class Records:
    """Streams the records of one data set slice in order; can be iterated only once.

    Raises UserError for a missing path, split or adapter, DataError for a malformed row (unless `skip_invalid`), and
    always DataError if a file is so damaged that the rest cannot be read.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.adapter = config.adapter
        """The adapter's name; with auto, the adapter chosen for the first row that matches one."""
        self.invalid: list[DataError] = []
        """Errors of skipped rows; at most 100."""
        self._slice, self._source = Slice.parse(config.split), open_source(config.path)
        if config.adapter != adapters.AUTO:
            adapters.load(config.adapter)
        self._num_kept = self._num_invalid = 0
        self._iterated = False

    @property
    def counts(self) -> Counts:
        """Rows so far; complete once the iteration has ended."""
        dropped = {"invalid": self._num_invalid} if self.config.skip_invalid else {}
        return Counts(self._num_kept + self._num_invalid, self._num_kept, dropped)

    def __iter__(self) -> Iterator[Record]:
        assert not self._iterated, "Records can be iterated only once; create another one"
        self._iterated = True
        return self._records()

    def _records(self) -> Iterator[Record]:
        for row in self._source.rows(self._slice.name, *self._slice.bounds(self._source)):
            try:
                record = self._record(row)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                problem = DataError(self.config.path, row.line, f"row {row.index}: {reason}")
                if not self.config.skip_invalid:
                    raise problem from None
                self._num_invalid += 1
                if len(self.invalid) < MAX_KEPT_ERRORS:
                    self.invalid.append(problem)
                continue
            self._num_kept += 1
            yield record

    def _record(self, row: Row) -> Record:
        if row.fields is None:
            raise ValueError(row.reason)
        fields = {_plain(name, name): _plain(value, name) for name, value in row.fields.items()}
        name = self.config.adapter
        if name == adapters.AUTO:
            # Chosen for each row, so that one file can contain rows of several formats. A row that matches none goes to
            # the adapter of the first row, which can say what is missing.
            name = adapters.choose(fields) or self.adapter
            if name == adapters.AUTO:
                known = ", ".join(adapters.names())
                raise ValueError(f"no adapter reads the fields {', '.join(fields) or '(none)'}; choose from {known}")
            if self.adapter == adapters.AUTO:
                self.adapter = name
        return adapters.load(name).record(fields, f"{self._slice.name}-{row.index}")


def write_prompts(config: DataConfig, path: Path) -> Counts:
    """Write all records of a data set slice to `path` as prompts.jsonl, atomically; return the counts.

    A row is `Prompt.to_json()` plus, if the data has one, `"completion": [messages]`. Raises the same errors as `Records`.
    """
    records = Records(config)
    write_jsonl(path, (_row(record) for record in records))
    return records.counts


def _row(record: Record) -> dict[str, Any]:
    row = record.prompt.to_json()
    return row if record.completion is None else row | {"completion": record.completion}


def _row_number(bound: str, length: int | None) -> int:
    if length is None:
        return int(bound)
    number = round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
    return min(max(number + length if bound.startswith("-") else number, 0), length)


def _plain(value: Any, field: str) -> Any:
    """Convert a value to plain JSON data: NaN, which tables use for missing values, is None; dates and decimals are text.

    Raises ValueError naming the field if the value has no JSON form.
    """
    if isinstance(value, str):
        try:
            if not value.isascii():
                value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"field {field!r} contains broken text (not UTF-8, or half a character)") from None
        return value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"field {field!r} contains {value}, which is not JSON")
        return None if math.isnan(value) else value
    if isinstance(value, (list, tuple)):
        return [_plain(item, field) for item in value]
    if isinstance(value, dict):
        return {_plain(str(key), field): _plain(item, field) for key, item in value.items()}
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    raise ValueError(f"field {field!r} contains {type(value).__name__}, which has no JSON form")
