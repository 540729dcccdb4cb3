"""Open text files as people bring them: compressed or not, in any encoding, with any line ends -> text, in constant memory.

    with open_text(Path("rows.jsonl.gz")) as file: ...

Compression is recognized by content (gzip, bzip2, xz, Zstandard), and so is the encoding: UTF-8, or UTF-16 and UTF-32 as
Windows writes them. Bytes that are not UTF-8 do not stop the reading: they become lone surrogates, which the check of a
row's fields finds. Any other encoding has to be named.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from distill_lab.errors import DataError, UserError

COMPRESSIONS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
"""Suffixes that compressed files have after their own."""
HEAD_BYTES = 4096
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LFS_START = b"version https://git-lfs"
OTHER_FORMATS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8 (.csv)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save the sheet as CSV UTF-8 (.csv)"),
    (b"PAR1", "a Parquet file; let its name end in .parquet"),
    (LFS_START, "a pointer to a file that Git LFS stores; fetch the file itself with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, not data; download the file itself, not its page"),
    (b"<html", "a web page, not data; download the file itself, not its page"),
)


@contextmanager
def open_text(path: Path, encoding: str = "", *, newline: str | None = None) -> Iterator[TextIO]:
    r"""The file as text; with newline None, lines end at \n, \r\n or \r and are returned with \n.

    encoding: empty finds it out. Raises UserError for an unknown encoding or a file that may not be read, DataError for
    another kind of file, text that is not in the encoding and damaged compression, also while the block reads.
    """
    try:
        with _open_bytes(path) as file:
            head = _peek(file)
            found = encoding or _encoding(head)
            if not encoding:
                _check_kind(path, head)
            errors = "surrogateescape" if found in ("utf-8", "utf-8-sig") else "strict"
            with io.TextIOWrapper(cast(BinaryIO, file), encoding=found, errors=errors, newline=newline) as text:
                yield text
    except LookupError:
        known = "utf-8, utf-16, cp1252, latin-1, gb18030, shift_jis"
        raise UserError(
            f"{path}: unknown encoding {encoding!r}; use a name that Python knows, such as {known}"
        ) from None
    except UnicodeError as error:
        reason = (
            f"not {encoding or 'the encoding that its first bytes announce'} ({error}); give another --data.encoding"
        )
        raise DataError(str(path), None, reason) from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(str(path), None, f"the compressed file is damaged ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _open_bytes(path: Path) -> BinaryIO:
    raw = path.open("rb")
    head = raw.peek(8)
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(raw))
    if head.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(raw))
    if head.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.open(raw))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd")))
    return raw


def _peek(file: BinaryIO) -> bytes:
    return cast(io.BufferedReader, file).peek(HEAD_BYTES)[:HEAD_BYTES]


def _check_kind(path: Path, head: bytes) -> None:
    for start, remedy in OTHER_FORMATS:
        if head.lstrip()[: len(start)].lower() == start.lower():
            raise DataError(str(path), None, f"this is {remedy}")


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes show: a byte order mark, or the zero bytes of UTF-16 and UTF-32 without one."""
    for bom, name in BOMS:
        if head.startswith(bom):
            return name
    zeros = tuple(byte == 0 for byte in head[:4])
    wide: dict[tuple[bool, ...], str] = {
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
    }
    return wide.get(zeros, "utf-8")
