"""Open data sources: a path or data set id -> a Source, which streams the rows of a slice.

    for row in open_source("data.jsonl").rows("train", 0, 100): row.index, row.line, row.fields or row.reason

A path is a file (compressed or not), a folder of shards or of `save_to_disk`, a data set id, or tiny:TASK. Sources keep at
most one row, one block of a file or one small batch in memory; only a file that is one JSON object is loaded whole. A
malformed row comes with its reason, and reading continues; if a file is so damaged that the rest cannot be read, raises
DataError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from distill_lab.data._csv import Csv
from distill_lab.data._folders import folder_readers, split_word
from distill_lab.data._hub import Hub
from distill_lab.data._json_files import TextLines, json_readers
from distill_lab.data._row_types import Reader, Row, Unusable
from distill_lab.data._tables import ArrowFile, Parquet, saved_splits
from distill_lab.data._text import COMPRESSIONS
from distill_lab.errors import UserError

__all__ = ["Hub", "Row", "Source", "Unusable", "open_source"]

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".jsonlines": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
"""Suffixes of data files, in any case, and what they hold."""
SHOWN = ".json, .jsonl, .parquet, .csv, .tsv, .arrow, .txt"
PROMPT_SETS = Path(__file__).parent / "prompt_sets"
"""Folder of the lab's own test prompts, one file for each set."""
WORKBOOKS = (".xlsx", ".xls", ".ods")
HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<name>[\w.-]+))?")


class Source(Protocol):
    """A source of rows. `split` is the name before the bracket."""

    def num_rows(self, split: str) -> int:
        """Number of rows. Raises UserError if it is unknown."""
        ...

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows from `start` up to but not including `stop` (None: to the end). Raises UserError, DataError."""
        ...


def open_source(path: str, *, delimiter: str = "", encoding: str = "") -> Source:
    """The source for `path`; checks files now, the hub when its rows are read. Raises UserError.

    delimiter: of a CSV file; encoding: of a text file. Both are found out if they are empty.
    """
    if path.startswith("tiny:"):
        return Tiny(path.removeprefix("tiny:"))
    if path.startswith("prompts:"):
        return Files(path, json_readers(prompt_set(path.removeprefix("prompts:")), ""))
    file = Path(path).expanduser()
    options = {"delimiter": delimiter, "encoding": encoding}
    try:
        is_folder, is_file = file.is_dir(), file.is_file()
    except (OSError, ValueError) as error:  # too long a name, a zero byte, a folder without permission
        raise UserError(f"{path!r}: not a path that can be read ({error})") from None
    if is_folder:
        saved = saved_splits(file)
        return Files(path, saved or folder_readers(file, kind_of, lambda shard: _single(shard, **options)))
    if kind_of(file.name):
        if not is_file:
            raise UserError(f"{path}: no such file (looked for {file.absolute()}); check the path")
        return Files(path, _readers(file, **options))
    if is_file:
        if file.suffix.lower() in WORKBOOKS:
            raise UserError(f"{path}: a workbook; save the sheet as CSV UTF-8 (.csv) and give that file")
        raise UserError(f"{path}: unknown file type; the name must end in {SHOWN}, also followed by .gz or .zst")
    hub = HUB_ID.fullmatch(path)
    if not hub:
        raise UserError(
            f"{path}: no such file, and not a data set id; give a {SHOWN} file, a folder of them, "
            "a Hugging Face id (owner/name, or owner/name:configuration), tiny:TASK or prompts:SET"
        )
    return Hub(hub["id"], hub["name"])


def prompt_set(name: str) -> Path:
    """The file of one of the lab's own sets of test prompts. Raises UserError for an unknown name."""
    known = sorted(file.stem for file in PROMPT_SETS.glob("*.jsonl"))
    if name not in known:
        names = ", ".join(f"prompts:{each}" for each in known)
        raise UserError(f"prompts:{name}: no such set of prompts; choose from {names}")
    return PROMPT_SETS / f"{name}.jsonl"


def kind_of(name: str) -> str:
    """What a file with this name holds: json, csv, tsv, parquet, arrow or text; "" if it is not a data file."""
    suffixes = Path(name.lower()).suffixes
    packed = suffixes[-1:] and suffixes[-1] in COMPRESSIONS
    kind = KINDS.get((suffixes[:-1] if packed else suffixes)[-1], "") if len(suffixes) > bool(packed) else ""
    return "" if packed and kind in ("parquet", "arrow") else kind


def _readers(path: Path, *, delimiter: str, encoding: str) -> Mapping[str, Reader]:
    """The readers of a file by split."""
    if kind_of(path.name) == "json":
        return json_readers(path, encoding)
    return {"": _single(path, delimiter=delimiter, encoding=encoding)}


def _single(path: Path, *, delimiter: str, encoding: str) -> Reader:
    """The reader of a file that is one split. Raises UserError if it has several."""
    kind = kind_of(path.name)
    if kind == "json":
        readers = json_readers(path, encoding)
        if len(readers) > 1:
            raise UserError(f"{path}: has several splits ({', '.join(readers)}); give this file by itself")
        return next(iter(readers.values()))
    if kind in ("csv", "tsv"):
        return Csv(path, delimiter=delimiter or ("\t" if kind == "tsv" else ""), encoding=encoding)
    if kind == "text":
        return TextLines(path, encoding)
    return Parquet(path) if kind == "parquet" else ArrowFile(path)


@dataclass(frozen=True)
class Files:
    """Files on this machine."""

    path: str
    readers: Mapping[str, Reader]
    """By split; the key "" for files that have a single split without a name."""

    def num_rows(self, split: str) -> int:
        """How many rows there are; see Source."""
        return self._reader(split).num_rows()

    def rows(self, split: str, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Source."""
        return self._reader(split).rows(start, stop)

    def _reader(self, split: str) -> Reader:
        """The reader of a split, also by another word for it (dev, valid). Raises UserError listing the splits."""
        if split in self.readers:
            return self.readers[split]
        meant = split_word(split) or split
        for name, reader in self.readers.items():
            if meant == (split_word(name) or name):
                return reader
        # A file without named splits is train, as `datasets` has it, and what its name says (gsm8k_test.jsonl).
        if list(self.readers) == [""] and meant in ("train", split_word(Path(self.path).name.partition(".")[0])):
            return self.readers[""]
        known = [name or "train" for name in self.readers]
        raise UserError(
            f"{self.path}: no split {split!r}; it has {', '.join(known)}. A part of a split is written {known[0]}[:1000]"
        )


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
