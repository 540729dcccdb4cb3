"""Which ids a file has, and a number for each, in 40 to 80 bytes per id of any length; a dict of texts takes 200 and more.

    index = IdIndex()
    index.add("train-7", 0)           True; False if it is there already
    index.get("train-7")              0; None for an id that is not there

A table of 128-bit digests with open addressing: with a billion ids, the chance that two have one digest is 1 in 10^20.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from struct import Struct

SMALLEST = 1024
MAX_LOAD = 0.6
"""Share of the table that is in use before it doubles."""
_halves = Struct("<QQ").unpack


class IdIndex:
    """Numbers by id."""

    def __init__(self) -> None:
        self._number = 0
        self._make(SMALLEST)

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._low, self._high, self._values = (array("Q", [0]) * size for _ in range(3))

    def __len__(self) -> int:
        return self._number

    def __contains__(self, id_: str) -> bool:
        return self.get(id_) is not None

    def add(self, id_: str, value: int) -> bool:
        """Store the number of a new id, from 0 up. False, and nothing changes, for one that is there."""
        low, high = _digest(id_)
        place = self._place(low, high)
        if self._values[place]:
            return False
        self._low[place], self._high[place], self._values[place] = low, high, value + 1
        self._number += 1
        if self._number > MAX_LOAD * (self._mask + 1):
            self._grow()
        return True

    def put(self, id_: str, value: int) -> int | None:
        """Store the number of an id, in place of the one it had; that one, or None."""
        if self.add(id_, value):
            return None
        place = self._place(*_digest(id_))
        before, self._values[place] = self._values[place] - 1, value + 1
        return before

    def get(self, id_: str) -> int | None:
        """The number of an id."""
        value = self._values[self._place(*_digest(id_))]
        return value - 1 if value else None

    def _place(self, low: int, high: int) -> int:
        """Where a digest is, or where it would go."""
        lows, highs, values, mask = self._low, self._high, self._values, self._mask
        place = low & mask
        while values[place] and not (lows[place] == low and highs[place] == high):
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        rows = zip(self._low, self._high, self._values, strict=True)
        self._make(2 * (self._mask + 1))
        for low, high, value in rows:
            if value:
                place = self._place(low, high)
                self._low[place], self._high[place], self._values[place] = low, high, value


def _digest(id_: str) -> tuple[int, int]:
    return _halves(blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest())
