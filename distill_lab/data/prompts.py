"""Read prompts.jsonl: one Prompt at a time, with every row checked.

for prompt in read_prompts(run.path("prompts.jsonl")): ...

A run reads its test prompts for every model it asks and grades. The prompts of the last small files stay in memory, so that
each is read from disk once until it changes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from distill_lab.errors import DataError
from distill_lab.files.id_index import IdIndex
from distill_lab.files.jsonl import read_jsonl
from distill_lab.types import Message, Prompt

MAX_KEPT_BYTES, MAX_KEPT_FILES = 4 << 20, 4
"""Files of prompts that stay in memory: their maximum size and number."""
_State = tuple[int, int, int, int]
_Row = tuple[Prompt, list[Message] | None]
"""A prompt, and the completion from the data."""
_kept: dict[str, tuple[_State, list[_Row]]] = {}


def read_prompts(path: Path, *, references: bool = False) -> Iterator[Prompt]:
    """Stream the prompts of a file. Raises DataError naming line and reason for malformed rows and duplicate ids.

    references: for prompts without a gold answer, use the completion from the data, if any, as the answer. The prompts may
    be those that another reader gets: they are not to be changed.
    """
    for prompt, completion in _rows(path):
        if references and prompt.answer is None and completion:
            prompt = dataclasses.replace(prompt, answer=completion[0]["content"])
        yield prompt


def is_kept(path: Path) -> bool:
    """Whether the prompts of a file stay in memory, so that it costs nothing to hold all of them."""
    return path.stat().st_size <= MAX_KEPT_BYTES


def _rows(path: Path) -> Iterator[_Row]:
    name, state = os.path.realpath(path), _state(path)
    known = _kept.get(name)
    if known and known[0] == state:
        yield from known[1]
        return
    read: list[_Row] = []
    small = is_kept(path)
    for row in _read(path):
        if small:
            read.append(row)
        yield row
    if small and _state(path) == state:
        _kept.pop(name, None)
        while len(_kept) >= MAX_KEPT_FILES:
            _kept.pop(next(iter(_kept)))
        _kept[name] = state, read


def _state(path: Path) -> _State:
    """Values that change when a file changes."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _read(path: Path) -> Iterator[_Row]:
    seen = IdIndex()
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            prompt = Prompt.from_json(row)
        except KeyError as error:
            raise DataError(str(path), number, f"a prompt needs the field {error.args[0]!r}") from None
        if not isinstance(prompt.id, str):
            raise DataError(str(path), number, f"the id is {type(prompt.id).__name__}, expected text")
        if not seen.add(prompt.id, number):
            raise DataError(str(path), number, f"the id {prompt.id!r} occurs twice; ids must be unique")
        yield prompt, row.get("completion")
