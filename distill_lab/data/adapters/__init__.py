"""Adapters convert data set rows to prompts: one file per row format; the file name is the adapter's name.

    load(choose({"instruction": "...", "output": "..."})).record(row, "train-0") -> Record

Any row may also have a system prompt, tools, context and choices: `_row.record` adds them, so adapters do not list them. To
add a format, add one file here with `FIELDS`, `matches` and `record` (see `Adapter`). Files that start with an underscore
are shared parts, not adapters.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Protocol, cast

from distill_lab.errors import UserError
from distill_lab.types import Fields, Record

AUTO = "auto"


class Adapter(Protocol):
    """What an adapter file must define."""

    FIELDS: tuple[str, ...]
    """The fields by which the adapter is chosen and that it reads; other fields go into the prompt's `meta`."""

    def matches(self, row: Fields) -> bool:
        """Whether the row has this format. Fast, and never raises, whatever the row contains."""
        ...

    def record(self, row: Fields, id: str) -> Record:
        """Convert the row. Raises ValueError with the reason (and the field's name) for a malformed row."""
        ...


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all adapters, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


@functools.cache
def load(name: str) -> Adapter:
    """The adapter named `name`. Raises UserError listing the known adapters if there is none."""
    if name not in names():
        raise UserError(f"no adapter {name!r}; choose from {AUTO}, {', '.join(names())}")
    return cast(Adapter, importlib.import_module(f"{__name__}.{name}"))


def choose(row: Fields) -> str | None:
    """The name of the most specific adapter that matches the row; None if none does.

    Most specific means that it reads the most non-null fields of the row; ties go to the alphabetically first name.
    """
    present = {field for field, value in row.items() if value is not None}
    best, best_size = None, 0
    for name, adapter, fields in _all():
        if adapter.matches(row) and len(present & fields) > best_size:
            best, best_size = name, len(present & fields)
    return best


@functools.cache
def all_fields() -> frozenset[str]:
    """All fields that some adapter reads or that mean something (`_meaning`), in lower case."""
    from distill_lab.data.adapters import _meaning, _row

    read = (field.lower() for name in names() for field in load(name).FIELDS)
    return frozenset((*read, *(field.lower() for field in (*_meaning.ALL, *_row.GOLD, *_row.THINKING))))


@functools.cache
def _all() -> tuple[tuple[str, Adapter, frozenset[str]], ...]:
    adapters = [(name, load(name)) for name in names()]
    return tuple((name, adapter, frozenset(adapter.FIELDS)) for name, adapter in adapters)
