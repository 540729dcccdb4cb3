"""Read a JSON array of any size, one element at a time: text -> (line, object or None, reason), in constant memory.

Reads the text in blocks and decodes each element once it is complete. Elements that are not usable rows come with a reason.
If the text stops being a JSON array at some point, raises DataError naming line and row. NaN and Infinity, which are not
JSON but which Python and pandas write, are read as numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from distill_lab.errors import DataError
from distill_lab.types import JsonObject

BLOCK_CHARS = 1 << 18
MAX_ROW_CHARS = 64 * 2**20
"""Maximum length of an element; without it, a missing bracket near the start would load the whole file into memory."""
SLACK_CHARS = 16
"""An error this close to the end of the text means that more text is needed (half a literal, half an escape)."""
SPACE = " \t\r\n"

Element = tuple[int, JsonObject | None, str]
"""(1-based line where it starts, the object or None, the reason if it is None)."""


def json_array(file: TextIO, source: str) -> Iterator[Element]:
    """Yield the elements of the array in `file`. Raises DataError, naming `source`, if reading cannot continue."""
    yield from _Scanner(file, source).elements()


class _Scanner:
    """The text that is read but not yet returned, and the line where it starts."""

    def __init__(self, file: TextIO, source: str) -> None:
        self.file, self.source = file, source
        self.text, self.position, self.line = "", 0, 1
        self.counted = 0
        """Position in the text up to which lines are counted."""
        self.index, self.ended = 0, False
        self.decoder = json.JSONDecoder()

    def elements(self) -> Iterator[Element]:
        self._take("[", "an array of objects starts with [")
        if self._peek() == "]":
            self.position += 1
        else:
            while True:
                yield self._element()
                self.index += 1
                if self._peek() == "]":
                    self.position += 1
                    break
                self._take(",", "between two rows there must be a comma")
        if self._peek():
            raise self._error(self.position, "there is text after the end of the array")

    def _element(self) -> Element:
        if not self._peek():
            raise self._error(self.position, "the file ends inside the array")
        line = self._line_at(self.position)
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                partial = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - SLACK_CHARS
                if partial and self._read():
                    continue
                torn = self.ended and (
                    error.msg.startswith("Unterminated") or error.pos >= len(self.text.rstrip(SPACE))
                )
                reason = "the file ends inside this row" if torn else f"not JSON ({error.msg})"
                raise self._error(error.pos, reason) from None
            except (ValueError, RecursionError) as error:
                raise self._error(self.position, f"not usable JSON ({error})") from None
            # A number at the very end of the text may continue in the next block.
            if end == len(self.text) and self._read():
                continue
            self.position = end
            break
        if not isinstance(value, dict):
            return line, None, f"expected a JSON object, found {type(value).__name__}"
        return line, value, ""

    def _take(self, wanted: str, rule: str) -> None:
        found = self._peek()
        if found != wanted:
            raise self._error(self.position, rule if found else "the file ends inside the array")
        self.position += 1

    def _peek(self) -> str:
        """The next non-space character, or "" at the end of the file."""
        while True:
            while self.position < len(self.text) and self.text[self.position] in SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read():
                return ""

    def _read(self) -> bool:
        """Append at least as much text as is left over, so that the time for a long row is linear in its length."""
        if self.ended:
            return False
        self._line_at(self.position)
        left = self.text[self.position :]
        if len(left) > MAX_ROW_CHARS:
            raise self._error(self.position, f"no end within {MAX_ROW_CHARS} characters; check for a missing bracket")
        block = self.file.read(max(BLOCK_CHARS, len(left)))
        self.ended = not block
        self.text, self.position, self.counted = left + block, 0, 0
        return True

    def _line_at(self, position: int) -> int:
        if position > self.counted:
            self.line += self.text.count("\n", self.counted, position)
            self.counted = position
        return self.line

    def _error(self, position: int, reason: str) -> DataError:
        line = self._line_at(min(position, len(self.text)))
        advice = "the rest of the file cannot be read; fix the file, or write one row per line as .jsonl"
        return DataError(self.source, line, f"row {self.index}: {reason}; {advice}")
