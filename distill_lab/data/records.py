"""Read data sets as prompts: file, hub id or tiny task -> Records, streaming -> prompts.jsonl.

    counts = write_prompts(DataConfig(path="data.jsonl", split="train[:1000]"), Path("prompts.jsonl"))

An adapter converts each row of the slice. A malformed row raises a DataError that names file, line and row; with
`skip_invalid` it is skipped and counted by its reason. A record's id is its split's name and its row number in the source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data._plain import plain_row, unpacked
from distill_lab.data.columns import Columns
from distill_lab.data.sources import Row, Source, Unusable, open_source
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.types import Counts, JsonObject, Record

MAX_KEPT_ERRORS = 100
MAX_REASONS = 20
"""Reasons counted separately; further ones are counted together."""
MAX_REASON_CHARS = 200
OTHER_REASONS = "invalid: other reasons"
MAX_PEEKED_ROWS = 100
"""Rows in which the columns of `--data.columns` must occur."""
SPLIT = re.compile(r"(?P<name>[\w.-]+)\s*(\[\s*(?P<start>-?\d{1,15}%?)?\s*:\s*(?P<stop>-?\d{1,15}%?)?\s*\])?")


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
        self._slice = Slice.parse(config.split)
        self._source = open_source(config.path, delimiter=config.delimiter, encoding=config.encoding)
        self._columns = Columns.parse(config.columns)
        if config.adapter != adapters.AUTO:
            adapters.load(config.adapter)
        self._num_kept = 0
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        """Where the first row of each reason is."""
        self._iterated = False

    @property
    def counts(self) -> Counts:
        """Rows so far, the skipped ones by reason with the first of each; complete once the iteration has ended."""
        dropped = {f"{reason} ({self._first[reason]})": number for reason, number in self._reasons.items()}
        return Counts(self._num_kept + self._reasons.total(), self._num_kept, dropped)

    def __iter__(self) -> Iterator[Record]:
        assert not self._iterated, "Records can be iterated only once; create another one"
        self._iterated = True
        return self._records()

    def _records(self) -> Iterator[Record]:
        start, stop = self._slice.bounds(self._source)
        if self._columns.sources:
            end = start + MAX_PEEKED_ROWS if stop is None else min(stop, start + MAX_PEEKED_ROWS)
            peeked = [row.fields or {} for row in self._source.rows(self._slice.name, start, end)]
            if peeked:
                self._columns.check({str(name) for fields in peeked for name in fields}, self.config.path)
        for row in self._source.rows(self._slice.name, start, stop):
            try:
                record = self._record(row)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                problem = DataError(row.file or self.config.path, row.line, f"row {row.index}: {reason}")
                if not self.config.skip_invalid:
                    raise problem from None
                self._count(row, reason)
                if len(self.invalid) < MAX_KEPT_ERRORS:
                    self.invalid.append(problem)
                continue
            self._num_kept += 1
            yield record

    def _count(self, row: Row, reason: str) -> None:
        short = reason if len(reason) <= MAX_REASON_CHARS else f"{reason[:MAX_REASON_CHARS]}..."
        name = f"invalid: {short}"
        if name not in self._reasons and len(self._reasons) >= MAX_REASONS:
            name = OTHER_REASONS
        place = f"row {row.index}" if row.line is None else f"line {row.line}"
        self._first.setdefault(name, f"first: {place}{f' of {row.file}' if row.file else ''}")
        self._reasons[name] += 1

    def _record(self, row: Row) -> Record:
        if row.fields is None:
            raise ValueError(row.reason)
        name, fields = self._adapter(_prepared(row.fields, self._columns))
        return adapters.load(name).record(fields, f"{self._slice.name}-{row.index}")

    def _adapter(self, fields: JsonObject) -> tuple[str, JsonObject]:
        """The adapter for a row, and the row with field names as the adapter spells them."""
        if self.config.adapter != adapters.AUTO:
            return self.config.adapter, fields
        # Chosen for each row, so that one file can contain rows of several formats. A row that matches none goes to the
        # adapter of the first row, which can say what is missing.
        name = self._columns.adapter or adapters.choose(fields)
        if name is None and len(lowered := {_lowered(field): value for field, value in fields.items()}) == len(fields):
            name = adapters.choose(lowered)
            fields = lowered if name else fields
        if name is None and self.adapter == adapters.AUTO:
            found = ", ".join(fields) or "(none)"
            raise ValueError(
                f"no adapter reads the fields {found}; choose from {', '.join(adapters.names())}, or say what they are: "
                "--data.columns prompt=NAME,completion=NAME,answer=NAME"
            )
        if self.adapter == adapters.AUTO and name is not None:
            self.adapter = name
        return name or self.adapter, fields


def first_row(config: DataConfig) -> JsonObject | None:
    """The fields of a slice's first row as adapters get them; None if there is no row, or none that is well-formed."""
    part = Slice.parse(config.split)
    source = open_source(config.path, delimiter=config.delimiter, encoding=config.encoding)
    row = next(iter(source.rows(part.name, *part.bounds(source))), None)
    if row is None or row.fields is None:
        return None
    try:
        return _prepared(row.fields, Columns.parse(config.columns))
    except ValueError:
        return None  # reading the rows says why


def _prepared(fields: JsonObject, columns: Columns) -> JsonObject:
    """A row with plain values and its columns renamed. Raises ValueError for a value without a JSON form that is read."""
    row = unpacked(columns.apply(plain_row(fields)))
    for name, value in row.items():
        if isinstance(value, Unusable):
            # A field that nothing reads never refuses a row; it is null in the prompt's meta.
            if name.lower() in adapters.all_fields():
                raise ValueError(value.reason)
            row[name] = None
    return row


def write_prompts(config: DataConfig, path: Path) -> Counts:
    """Write all records of a data set slice to `path` as prompts.jsonl, atomically; return the counts.

    A row is `Prompt.to_json()` plus, if the data has one, `"completion": [messages]`. Raises the same errors as `Records`.
    """
    records = Records(config)
    write_jsonl(path, (_row(record) for record in records))
    return records.counts


def _row(record: Record) -> JsonObject:
    row = record.prompt.to_json()
    return row if record.completion is None else {**row, "completion": record.completion}


def _row_number(bound: str, length: int | None) -> int:
    if length is None:
        return int(bound)
    number = round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
    return min(max(number + length if bound.startswith("-") else number, 0), length)


def _lowered(name: str) -> str:
    """A column's name in the spelling of the adapters: `Final Answer` becomes final_answer."""
    return "_".join(name.strip().lower().split())
