"""JSON files: one object per line, atomic writes, appending that survives a kill. Every error names file and line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distill_lab.errors import DataError
from distill_lab.types import Fields


def private(path: str, flags: int) -> int:
    """Opener for `open`: a new file holds prompts, answers or settings, so only its owner may read it."""
    return os.open(path, flags, 0o600)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it when the block succeeds and is removed when it fails.

    A new file may be read by its owner only; one that is replaced keeps its permissions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{path.suffix}")
    open(temporary, "xb", opener=private).close()
    with suppress(OSError):
        if path.is_file() and not path.is_symlink():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON, atomically."""
    try:
        content = json.dumps(data, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which a file name that is not UTF-8 has too
        content = json.dumps(data, indent=2).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content + b"\n")


def copy_file(source: Path, path: Path) -> None:
    """Replace `path` with a copy of a file, atomically; a reader never sees a partial file."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file one at a time. Raises DataError naming file and line for anything else."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield parse_json_object(line, str(path), number)


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Like `read_jsonl`, for a file that rows are appended to: skips a last line that a kill left incomplete.

    Also raises DataError if the last line cannot be the start of a row, because then it is not such a file.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if not line.startswith((b'{"', b"\0")) and line != b"{":  # some file systems leave zeros after a crash
                    raise DataError(str(path), number, "not a JSON object; this file was not changed")
            elif line.strip():
                yield parse_json_object(line, str(path), number)


def parse_json_object(line: bytes, source: str, number: int) -> dict[str, Any]:
    """Parse one JSONL line. Raises DataError for incomplete lines, bad UTF-8, NaN/Infinity and anything but an object."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        row = json.loads(line.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise DataError(source, number, f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(source, number, f"not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise DataError(source, number, f"expected a JSON object, found {type(row).__name__}")
    return row


def json_line(row: Fields) -> bytes:
    """One JSONL line including its newline. Raises ValueError for NaN and Infinity, which are not JSON."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        # Half a surrogate pair (text cut off within an emoji) cannot be encoded in UTF-8, but as a JSON escape.
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def write_jsonl(path: Path, rows: Iterable[Fields]) -> int:
    """Write `rows` as JSONL, atomically; return their number."""
    number = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            file.write(json_line(row))
            number += 1
    return number


class JsonlAppender:
    """Appends rows to a JSONL file and survives a kill: removes an incomplete last line on open, syncs rows to disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "ab+", opener=private)  # noqa: SIM115 (closed by __exit__)
        end = self._file.seek(0, os.SEEK_END)
        if end:
            self._remove_torn_line(end)

    def _remove_torn_line(self, end: int) -> None:
        position, tail = end, b""
        while position > 0 and b"\n" not in tail:
            start = max(0, position - 65536)
            self._file.seek(start)
            tail = self._file.read(position - start) + tail
            position = start
        keep = position + tail.rfind(b"\n") + 1
        if keep < end:
            self._file.truncate(keep)

    def append(self, rows: Iterable[Fields]) -> None:
        """Append `rows`; they are on disk when this returns."""
        self._file.write(b"".join(json_line(row) for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> JsonlAppender:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
