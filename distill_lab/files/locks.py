"""Locks between processes: one process locks a file, and the system frees the lock if that process dies.

lock = take_lock(directory / ".lock", busy="runs/demo is in use ...")      until lock.close()
with locked(Path("answers.jsonl")): ...                                    .answers.jsonl.lock next to it meanwhile
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from distill_lab.errors import UserError
from distill_lab.files.jsonl import private

BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What a system says if another process has the lock; anything else means that the disk has no locks."""


def take_lock(file: Path, *, busy: str) -> TextIO:
    """Take an exclusive lock, held while the returned file is open. Raises UserError(busy) if another process has it."""
    held = open(file, "a+", opener=private)  # noqa: SIM115 (held open by the caller)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(held.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        if error.errno in BUSY:
            raise UserError(busy) from None
        raise UserError(f"{file} cannot be locked ({error.strerror}); use a folder on a local disk") from None
    return held


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Lock an output while the block writes it. Raises UserError if another process has locked it."""
    file = output.with_name(f".{output.name}.lock")
    busy = f"{output} is being written by another process; wait for it or choose another name"
    while True:
        held = take_lock(file, busy=busy)
        # Its previous owner may have removed the file after we opened it and before we locked it.
        if _is_the_same(held, file):
            break
        held.close()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file
            file.unlink()
        held.close()
        if os.name == "nt":
            with suppress(OSError):
                file.unlink()


def _is_the_same(held: TextIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held.fileno()), file.stat())
    except FileNotFoundError:
        return False
