"""Tables on disk: Parquet and Arrow files, and the folders that `datasets` writes with `save_to_disk` -> rows in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill_lab.data._arrow import Converter
from distill_lab.data._row_types import Row
from distill_lab.data._text import LFS_START
from distill_lab.errors import DataError, UserError
from distill_lab.formatting import one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import RecordBatch, Table
    from pyarrow.parquet import ParquetFile

BATCH_ROWS = 256
"""Rows to decode at once."""


class Parquet:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self) -> int:
        """How many rows there are."""
        with self._open() as file:
            return file.metadata.num_rows

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        import pyarrow

        with self._open() as file:
            index, groups = 0, list(range(file.metadata.num_row_groups))
            while groups and index + file.metadata.row_group(groups[0]).num_rows <= start:
                index += file.metadata.row_group(groups.pop(0)).num_rows
            try:
                converter = Converter(file.schema_arrow)
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                    if stop is not None and index >= stop:
                        return
                    skipped = min(max(start - index, 0), batch.num_rows)
                    for offset, fields in enumerate(converter.rows(batch.slice(skipped)), start=index + skipped):
                        if stop is not None and offset >= stop:
                            return
                        yield Row(offset, None, fields)
                    index += batch.num_rows
            except (pyarrow.ArrowException, OSError, OverflowError) as error:
                reason = f"row {index} and the rest of the file cannot be read ({one_line(error)}); download it again"
                raise DataError(str(self.path), None, reason) from error

    def _open(self) -> ParquetFile:
        import pyarrow
        import pyarrow.parquet

        try:
            # Buffered and without prefetch; otherwise a whole row group, often the whole file, is read at once.
            file = pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
            names = file.schema_arrow.names
        except (pyarrow.ArrowException, OverflowError) as error:
            remedy = "fetch the file itself with `git lfs pull`" if _is_pointer(self.path) else "download it again"
            reason = f"not a complete Parquet file ({one_line(error)}); {remedy}"
            raise DataError(str(self.path), None, reason) from error
        except OSError as error:
            # Arrow reports damage like this, too.
            reason = f"cannot be read as Parquet ({one_line(error)}); check its permissions, or download it again"
            raise DataError(str(self.path), None, reason) from error
        _check_names(self.path, names)
        return file


class Saved:
    """One split of a folder that `Dataset.save_to_disk` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dataset: Dataset | None = None

    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self._open())

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        import pyarrow

        dataset = self._open()
        end = len(dataset) if stop is None else min(stop, len(dataset))
        converter, index = Converter(dataset.features.arrow_schema), start
        tables = dataset.with_format("arrow")
        try:
            for first in range(start, end, BATCH_ROWS):
                # Not the dict that the type of its slices says.
                table = cast("Table", tables[first : min(first + BATCH_ROWS, end)])
                table.validate(full=True)  # the files are mapped into memory as they are, damage included
                for fields in converter.rows(table):
                    yield Row(index, None, fields)
                    index += 1
        except (pyarrow.ArrowException, OSError, OverflowError, IndexError) as error:
            reason = f"row {index} and the rest of the folder cannot be read ({one_line(error)}); save it again"
            raise DataError(str(self.folder), None, reason) from error

    def _open(self) -> Dataset:
        if self._dataset is None:
            import datasets

            try:
                self._dataset = datasets.Dataset.load_from_disk(str(self.folder))
            except Exception as error:  # its metadata are read without checks, so that damage shows as any exception
                reason = f"cannot be read as a folder of save_to_disk ({one_line(error)}); save it again"
                raise DataError(str(self.folder), None, reason) from error
            _check_names(self.folder, self._dataset.column_names)
        return self._dataset


class ArrowFile:
    """An .arrow file, as `datasets` keeps in its cache, or a .feather file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def num_rows(self) -> int:
        """How many rows there are."""
        return sum(batch.num_rows for batch in self._batches())

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """The rows of a slice; see Reader."""
        index = 0
        for batch in self._batches():
            end = index + batch.num_rows if stop is None else min(index + batch.num_rows, stop)
            first = max(start, index)
            if first < end:
                rows = Converter(batch.schema).rows(batch.slice(first - index, end - first))
                for offset, fields in enumerate(rows, start=first):
                    yield Row(offset, None, fields)
            index += batch.num_rows
            if stop is not None and index >= stop:
                return

    def _batches(self) -> Iterator[RecordBatch]:
        import pyarrow

        try:
            with pyarrow.memory_map(str(self.path)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                if is_file:
                    reader = pyarrow.ipc.open_file(source)
                    _check_names(self.path, reader.schema.names)
                    batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                else:
                    reader = pyarrow.ipc.open_stream(source)
                    _check_names(self.path, reader.schema.names)
                    batches = iter(reader)
                for batch in batches:
                    batch.validate(full=True)  # the file is mapped into memory as it is, damage included
                    yield batch
        except (pyarrow.ArrowException, OSError, OverflowError) as error:
            raise DataError(str(self.path), None, f"cannot be read as Arrow ({one_line(error)})") from error


def saved_splits(folder: Path) -> dict[str, Saved]:
    """The splits of a folder that `save_to_disk` wrote; empty if it is not one. Raises UserError for missing splits."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"": Saved(folder)}
    if not (folder / "dataset_dict.json").is_file():
        return {}
    names = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
    if not names:
        raise UserError(f"{folder}: a folder of save_to_disk without any split in it; save the data set again")
    return {name: Saved(folder / name) for name in names}


def _is_pointer(path: Path) -> bool:
    """Whether Git LFS has left a text in place of the file."""
    with path.open("rb") as file:
        return file.read(len(LFS_START)) == LFS_START


def _check_names(path: Path, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(str(path), None, f"several columns are called {', '.join(map(repr, repeated))}; rename them")
