"""Damaged copies of a file: cut, emptied, flipped, replaced, and valid JSON of another shape.

for damaged in mutations(path.read_bytes(), 1000): path.write_bytes(damaged); ...
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

WHOLE = (
    b"", b"\0", b"\0" * 5000, b"{", b"}", b"{}", b"[]", b"[1]", b"null", b"true", b"7", b"-0.0", b'"x"', b"NaN",
    b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b'"\\ud800"', b"notes of a year\n",
    b"\n" * 100,
    b'{"a": 1}{"a": 2}', b"%PDF-1.7", b"\x80\x04\x95", b"PK\x03\x04",
)  # fmt: skip
"""What a whole file may be replaced by."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, 1.5, -1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", "[/x]", "\ud800",
    "a\0b", "../../x", "é" * 300, [], [None], [[]], [1, "a"], {}, {"": {}}, {"a": None}, {"a": [{}]},
)  # fmt: skip
"""What a value in a JSON file may be replaced by."""


def mutations(content: bytes, number: int, *, seed: int = 0) -> Iterator[bytes]:
    """About `number` damaged copies of a file: all of WHOLE, then random ones."""
    draw = random.Random(seed)
    yield from WHOLE
    documents = _documents(content)
    for _ in range(number - len(WHOLE)):
        if documents and draw.random() < 0.6:
            yield _reshaped(documents, draw)
        else:
            yield _damaged(content, draw)


def _documents(content: bytes) -> list[Any]:
    """The JSON values of a file, one or one a line; empty if it is not JSON."""
    for parts in ([content], content.splitlines()):
        try:
            return [json.loads(part) for part in parts if part.strip()]
        except ValueError:
            continue
    return []


def _damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes cut off, flipped, removed, doubled or put in."""
    start, stop = sorted(draw.randint(0, len(content)) for _ in range(2))
    kind = draw.randrange(6)
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[stop:]
    if kind == 2:
        return content[:start] + content[min(stop, start + 40) :]
    if kind == 3:
        return content[:stop] + content[start:]
    if kind == 4:
        return content[:start] + bytes(draw.randrange(256) for _ in range(draw.randint(1, 9))) + content[start:]
    flipped = bytearray(content or b"x")
    for _ in range(draw.randint(1, 4)):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _reshaped(documents: list[Any], draw: random.Random) -> bytes:
    """The file's JSON with a value replaced, a name removed or changed, or an element doubled."""
    changed = copy.deepcopy(documents)
    place = draw.randrange(len(changed))
    for _ in range(draw.randint(1, 3)):
        spots = list(_spots(changed[place]))
        if not spots or draw.random() < 0.05:
            changed[place] = copy.deepcopy(draw.choice(VALUES))
            continue
        owner, key = draw.choice(spots)
        kind = draw.randrange(5)
        if kind < 3:
            owner[key] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 3:
            del owner[key]
        elif isinstance(owner, dict):
            owner[str(draw.choice(VALUES))] = owner.pop(key)
        else:
            owner.append(copy.deepcopy(owner[key]))
    lines = [json.dumps(each) for each in changed]
    if draw.random() < 0.1:
        lines.append(draw.choice(lines))
    return "\n".join(lines).encode() + b"\n" * draw.randint(0, 1)


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: (object or array, key or index)."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _spots(value[key])
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index
            yield from _spots(each)
