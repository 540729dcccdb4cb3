"""Folders of shards: `data/train-00000-of-00002.parquet, ...` -> one reader per split, rows in the order of the names.

Only files that belong together are read as one: same name apart from numbers, same kind. Anything else is refused, with the
list of files, because rows of two data sets must not be mixed in silence. A shard that is missing is named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distill_lab.data._row_types import Reader, Row
from distill_lab.errors import DataError, UserError

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in file and folder names that say which split it is, as on the hub."""
MAX_LISTED = 8
NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")
_NUMBERS = re.compile(r"(?P<number>\d+)-of-(?P<total>\d+)")


class Shards:
    """Several files as one."""

    def __init__(self, files: Sequence[tuple[Path, Reader]]) -> None:
        self.files = files

    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(reader.num_rows() for _, reader in self.files)

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        index = 0
        for path, reader in self.files:
            if stop is not None and index >= stop:
                return
            # Counting is needed only for files before the slice.
            first = 0
            if start > index:
                first = min(start - index, reader.num_rows())
            last = index + first - 1
            for row in reader.rows(first, None if stop is None else stop - index):
                last = index + row.index
                yield dataclasses.replace(row, index=last, file=str(path))
            index = last + 1


def split_word(name: str) -> str | None:
    """The split that a name says: `gsm8k_test` -> test, `dev-00000-of-00001` -> validation. The last word counts."""
    words = re.split(r"[^a-z]+", name.lower())
    found = [split for word in words for split, known in SPLIT_WORDS.items() if word in known]
    return found[-1] if found else None


def folder_readers(folder: Path, kind: Callable[[str], str], reader: Callable[[Path], Reader]) -> dict[str, Reader]:
    """The readers of a folder by split; the key "" if its files name none.

    kind: the kind of file a name says, or "". Raises UserError if there are no data files or they do not belong together.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith((".", "_")) for part in inside) or path.name in NOT_DATA:
            continue
        if kind(path.name) and not (path.suffix.lower() == ".txt" and path.stem.lower() in ("readme", "license")):
            split = split_word(path.name.partition(".")[0]) or split_word("/".join(inside[:-1])) or ""
            found.setdefault(split, []).append(path)
    if not found:
        raise UserError(f"{folder}: a folder without data files; give a data file, or a folder of them")
    return {split: Shards(_together(folder, files, kind, reader)) for split, files in found.items()}


def _together(
    folder: Path, files: list[Path], kind: Callable[[str], str], reader: Callable[[Path], Reader]
) -> list[tuple[Path, Reader]]:
    """The files of one split in order. Raises UserError if they do not belong together, DataError if one is missing."""
    groups = {(path.parent, _pattern(path.name)) for path in files}
    if len(groups) > 1:
        names = [path.relative_to(folder).as_posix() for path in files]
        shown = ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
        raise UserError(f"{folder}: files of several data sets ({shown}); give one of them, or one folder of shards")
    files = sorted(files, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
    parts = [match for path in files if (match := _NUMBERS.search(path.name))]
    if parts:
        total = max(int(match["total"]) for match in parts)
        if total <= len(files) + 10_000:
            missing = sorted(set(range(total)) - {int(match["number"]) for match in parts})
            # Some writers count from 1.
            if missing and missing != [0] and len(parts) < total:
                listed = ", ".join(map(str, missing[:MAX_LISTED]))
                raise DataError(str(folder), None, f"shards {listed} of {total} are missing; download them")
    return [(path, reader(path)) for path in files]


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name.lower())
