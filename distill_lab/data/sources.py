"""Open data sources: a path or data set id -> a Source, which streams the rows of a slice.

    for row in open_source("data.jsonl").rows("train", 0, 100): row.index, row.line, row.fields or row.reason

Sources keep at most one row, one block of a file or one small batch in memory. A malformed row comes with its reason, and
reading continues; if a file is so damaged that the rest cannot be read, raises DataError.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from distill_lab.data._json_array import json_array
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import parse_json_object

BOM = b"\xef\xbb\xbf"
BATCH_ROWS = 256
"""Rows of a Parquet file to decode at once."""
MAX_FIELD_CHARS = 64 * 2**20
"""Maximum length of a CSV field."""
HUB_TIMEOUT_S = 10.0
"""Timeout in seconds for asking the hub whether it has a data set."""
HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<name>[\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: its fields, or the reason why it has none."""

    index: int
    """0-based position among the source's rows; counts malformed rows but not blank lines."""
    line: int | None
    """1-based line where the row starts, in text files."""
    fields: dict[str, Any] | None
    reason: str = ""


class Source(Protocol):
    """A source of rows. `split` is the name before the bracket; files have a single split, with any name."""

    def num_rows(self, split: str) -> int:
        """Number of rows. Raises UserError if it is unknown."""
        ...

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows from `start` up to but not including `stop` (None: to the end). Raises UserError, DataError."""
        ...


def open_source(path: str) -> Source:
    """The source for `path`; checks files now, the hub when its rows are read. Raises UserError."""
    if path.startswith("tiny:"):
        return Tiny(path.removeprefix("tiny:"))
    file = Path(path).expanduser()
    kinds = {".json": Json, ".jsonl": JsonLines, ".parquet": Parquet, ".csv": Csv, ".txt": Text}
    if file.is_dir():
        raise UserError(f"{path}: this is a directory; give one file in it ({', '.join(kinds)})")
    if file.suffix in kinds:
        if not file.is_file():
            raise UserError(f"{path}: no such file (looked for {file.absolute()}); check the path")
        return kinds[file.suffix](file)
    if file.is_file():
        raise UserError(f"{path}: unknown file type; the name must end in {', '.join(kinds)}")
    hub = HUB_ID.fullmatch(path)
    if not hub:
        raise UserError(
            f"{path}: no such file, and not a data set id; give a {', '.join(kinds)} file, "
            "a Hugging Face id (owner/name, or owner/name:configuration), or tiny:TASK"
        )
    return Hub(hub["id"], hub["name"])


class JsonLines:
    """A .jsonl file: one JSON object per line; blank lines, CRLF and a byte order mark are allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        return sum(1 for _ in self._lines())

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        for index, (number, line) in islice(enumerate(self._lines()), start, stop):
            try:
                yield Row(index, number, parse_json_object(line, str(self.path), number))
            except DataError as error:
                yield Row(index, number, None, error.reason)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return _filled_lines(self.path)


class Text:
    """A .txt file: each line becomes a row `{"sentence": line}`; blank lines, CRLF and a byte order mark are allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        return sum(1 for _ in _filled_lines(self.path))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        for index, (number, line) in islice(enumerate(_filled_lines(self.path)), start, stop):
            try:
                yield Row(index, number, {"sentence": line.decode("utf-8").strip()})
            except UnicodeDecodeError as error:
                yield Row(index, number, None, f"not UTF-8 ({error.reason} at byte {error.start})")


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The non-empty lines, with their 1-based numbers."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = (line.removeprefix(BOM) if number == 1 else line).strip()
            if line:
                yield number, line


class Json:
    """A .json file: an array of objects, or one object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        return sum(1 for _ in json_array(self.path)) if self._is_array() else JsonLines(self.path).num_rows(split)

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        if not self._is_array():
            for row in JsonLines(self.path).rows(split, start, stop):
                hint = "a .json file must be an array of objects, or one object per line"
                yield row if row.fields else Row(row.index, row.line, None, f"{row.reason}; {hint}")
            return
        for index, (number, fields, reason) in islice(enumerate(json_array(self.path)), start, stop):
            yield Row(index, number, fields, reason)

    def _is_array(self) -> bool:
        with self.path.open("rb") as file:
            first = file.read(len(BOM))
            if first != BOM:
                file.seek(0)
            while block := file.read(4096):
                if block.strip():
                    return block.strip().startswith(b"[")
        return False


class Csv:
    """A .csv file with a header line, comma-separated, quoted with "; fields may contain line breaks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        return sum(1 for _ in self.rows(split, 0, None))

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        return islice(self._rows(), start, stop)

    def _rows(self) -> Iterator[Row]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            line, index = 1, 0
            header: list[str] = []
            try:
                for values in reader:
                    if not values:
                        pass
                    elif not header:
                        header = values
                        if "" in header or len(set(header)) < len(header):
                            raise DataError(str(self.path), line, f"the header has empty or repeated names: {header}")
                    else:
                        yield self._row(index, line, header, values)
                        index += 1
                    line = reader.line_num + 1
            except csv.Error as error:
                reason = f"row {index}: the quotes do not match ({error}); the rest of the file cannot be read"
                raise DataError(str(self.path), line, reason) from None

    @staticmethod
    def _row(index: int, line: int, header: list[str], values: list[str]) -> Row:
        if len(values) != len(header):
            return Row(index, line, None, f"{len(values)} values, but the header has {len(header)}")
        return Row(index, line, dict(zip(header, values, strict=True)))


class Parquet:
    """A .parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        with self._open() as file:
            return file.metadata.num_rows

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        import pyarrow

        with self._open() as file:
            index, groups = 0, list(range(file.metadata.num_row_groups))
            while groups and index + file.metadata.row_group(groups[0]).num_rows <= start:
                index += file.metadata.row_group(groups.pop(0)).num_rows
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                    if stop is not None and index >= stop:
                        return
                    skipped = min(max(start - index, 0), batch.num_rows)
                    for offset, fields in enumerate(batch.slice(skipped).to_pylist(), start=index + skipped):
                        if stop is not None and offset >= stop:
                            return
                        yield Row(offset, None, fields)
                    index += batch.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                reason = f"row {index} and the rest of the file cannot be read ({error}); download the file again"
                raise DataError(str(self.path), None, reason) from error

    def _open(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            # Buffered and without prefetch; otherwise a whole row group, often the whole file, is read at once.
            return pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
        except pyarrow.ArrowInvalid as error:
            raise DataError(
                str(self.path), None, f"not a complete Parquet file ({error}); download it again"
            ) from error


class Tiny:
    """One of the tiny family's tasks, with infinitely many rows."""

    def __init__(self, task: str) -> None:
        self.task = task

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        raise UserError(f"tiny:{self.task} has infinitely many rows; use row numbers from the start: {split}[:1000]")

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        from distill_lab.tiny import tasks

        if stop is None:
            raise UserError(f"tiny:{self.task} has infinitely many rows; say how many you want: {split}[:1000]")
        for index, fields in islice(enumerate(tasks.rows(self.task, split)), start, stop):
            yield Row(index, None, fields)


class Hub:
    """A data set on the Hugging Face hub, streamed: downloads only what is read."""

    def __init__(self, id: str, name: str | None) -> None:
        self.id, self.name = id, name
        self._datasets: dict[str, Any] = {}

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        number = num_examples(self._dataset(split), split)
        if number is None:
            raise UserError(
                f"{self.id}: the hub does not report the length of {split}; use row numbers: {split}[:1000]"
            )
        return number

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        dataset = self._dataset(split)
        try:
            yield from stream(dataset, start, stop)
        except _hub_failures() as error:
            raise UserError(f"{self.id}: the download failed ({_cause(error)}); run the same command again") from error

    def _dataset(self, split: str) -> Any:
        if split not in self._datasets:
            self._check()
            import datasets

            try:
                self._datasets[split] = datasets.load_dataset(self.id, self.name, split=split, streaming=True)
            except _hub_failures() as error:
                remedy = f"give a configuration after a colon ({self.id}:main), a split before the bracket (test[:100])"
                raise UserError(f"{self.id}: cannot be opened ({_cause(error)}); {remedy}") from error
        return self._datasets[split]

    def _check(self) -> None:
        """Ask the hub once, briefly, because `datasets` silently retries for half a minute or more."""
        from huggingface_hub import dataset_info

        # HTTPError from the hub client, because the client switched to another HTTP library between versions.
        from huggingface_hub.errors import (
            GatedRepoError,
            HTTPError,  # pyright: ignore[reportPrivateImportUsage]
            RepositoryNotFoundError,
        )

        reason = "no such file here and no such data set on the hub; check the name, or run `hf auth login`"
        try:
            dataset_info(self.id, timeout=HUB_TIMEOUT_S)
        except GatedRepoError:
            raise UserError(f"{self.id}: gated; accept its terms on its hub page, then run `hf auth login`") from None
        except RepositoryNotFoundError:
            raise UserError(f"{self.id}: {reason}") from None
        except (HTTPError, OSError) as error:
            raise UserError(
                f"{self.id}: no such file here, and the hub does not answer ({_cause(error)}); check the network, or "
                f"download the file elsewhere (hf download --repo-type dataset {self.id}) and give its path"
            ) from error


def num_examples(dataset: Any, split: str) -> int | None:
    """The length of a split from a streamed data set's card; None if the card does not state it."""
    splits = dataset.info.splits
    return splits[split].num_examples if splits and split in splits else None


def stream(dataset: Any, start: int, stop: int | None) -> Iterator[Row]:
    """The rows of a `datasets.IterableDataset`."""
    part = dataset.skip(start) if start else dataset
    part = part if stop is None else part.take(max(stop - start, 0))
    for index, fields in enumerate(part, start=start):
        yield Row(index, None, dict(fields))


def _hub_failures() -> tuple[type[Exception], ...]:
    import pyarrow
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return (HTTPError, OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException)


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
