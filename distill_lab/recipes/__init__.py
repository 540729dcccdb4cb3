"""Recipes: a file each, found by name. Each has `Config` (its settings), `PRESETS` and `run(config, directory)`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Protocol, cast

from distill_lab.config import Config


class Recipe(Protocol):
    """What a recipe's file offers."""

    __doc__: str | None
    PRESETS: Mapping[str, Config]


def names() -> list[str]:
    """The recipes there are: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Recipe:
    """A recipe's module, by file name."""
    return cast("Recipe", _module(name))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
