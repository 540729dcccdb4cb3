"""The terminal's streams as a command may use them: nothing that is printed can end the work, steer the terminal or leak.

    with guarded_streams() as streams: ...        sys.stdout and sys.stderr in the block
    streams.problem()                             why output was lost, or ""

A character that the terminal's encoding lacks is escaped. If the reader of a pipe leaves (`| head -1`), the rest goes
nowhere and the work continues. If output cannot be written (a full disk), the work continues too, and `problem` says why.
API keys in the environment are replaced in everything that is printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO, cast

from distill_lab.files.redact import environment_redactor


class GuardedStream:
    """Text stream around another one; see the file's docstring."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._redact = stream, name, environment_redactor()
        self.lost = ""
        """Why output was lost; empty if everything was written, or if nobody was there to read it."""
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text without secrets. Never fails."""
        try:
            self._stream.write(self._redact(text))
        except (OSError, ValueError) as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush. Never fails."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            self.lost = f"{self._name} cannot be written ({error.strerror or error})"
        # What is left in the stream's buffer goes nowhere, now and when Python ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@dataclass(frozen=True, slots=True)
class Streams:
    """The guarded streams of a command."""

    streams: tuple[GuardedStream, ...]

    def problem(self) -> str:
        """Why output was lost; empty if it was not."""
        for stream in self.streams:
            stream.flush()
        return "; ".join(stream.lost for stream in self.streams if stream.lost)


@contextlib.contextmanager
def guarded_streams() -> Iterator[Streams]:
    """Guard sys.stdout and sys.stderr in the block. A stream that is closed stays so."""
    before = sys.stdout, sys.stderr
    names = "standard output", "standard error"
    guarded = [GuardedStream(stream, name) if stream else None for stream, name in zip(before, names, strict=True)]
    # Python has None for a stream that is closed; print and rich then write nothing.
    sys.stdout, sys.stderr = (cast(TextIO, each) for each in guarded)
    streams = Streams(tuple(each for each in guarded if each))
    try:
        yield streams
    finally:
        streams.problem()
        sys.stdout, sys.stderr = before
