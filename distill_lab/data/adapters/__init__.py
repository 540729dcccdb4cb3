"""How a row of a data set becomes a prompt: one file per form of row, and the file name is the adapter's name.

    choose({"instruction": "...", "output": "..."}).record(row, "train-0") -> Record

A new form is one new file here with `FIELDS`, `matches` and `record` (see `Adapter`). Files that begin with an
underscore are shared parts, not adapters.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol, cast

from distill_lab.errors import UserError
from distill_lab.types import Record

AUTO = "auto"


class Adapter(Protocol):
    """What a file in this folder has to have."""

    FIELDS: tuple[str, ...]
    """Every field the adapter reads; what it does not read goes into the prompt's `meta`."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has this form. Cheap, and raises nothing whatever the row holds."""
        ...

    def record(self, row: Mapping[str, Any], id: str) -> Record:
        """The row as a Record. Raises ValueError with the reason (and the field's name) for a malformed row."""
        ...


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all adapters, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


@functools.cache
def load(name: str) -> Adapter:
    """The adapter of that name. Raises UserError listing the known ones for any other name."""
    if name not in names():
        raise UserError(f"no adapter {name!r}; there are {AUTO}, {', '.join(names())}")
    return cast(Adapter, importlib.import_module(f"{__name__}.{name}"))


def choose(row: Mapping[str, Any]) -> str | None:
    """The name of the most specific adapter that matches the row, or None where none does.

    Most specific: it reads the most of the fields the row fills; ties go to the first name in the alphabet.
    """
    present = {field for field, value in row.items() if value is not None}
    best, best_size = None, 0
    for name, adapter, fields in _all():
        if adapter.matches(row) and len(present & fields) > best_size:
            best, best_size = name, len(present & fields)
    return best


@functools.cache
def _all() -> tuple[tuple[str, Adapter, frozenset[str]], ...]:
    adapters = [(name, load(name)) for name in names()]
    return tuple((name, adapter, frozenset(adapter.FIELDS)) for name, adapter in adapters)
