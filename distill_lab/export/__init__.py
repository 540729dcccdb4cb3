"""Take a student home: a run or a model -> files that other programs open. One file per target; its name is the target's.

    source = find_source("runs/first")
    exported = export("gguf", source, Path("out"), Options(types=("Q8_0",)))

A target module has two functions: `check(options)` raises UserError, before anything is loaded, if a package is missing or
an option is wrong, and `export(job) -> list[Exported]` writes into `job.out`. A third, `publish(out, options, overwrite=...)
-> list[str]`, sends the finished files elsewhere, if a target does that. Files that start with an underscore are helpers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

from distill_lab.config import Dtype
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_lab.export._source import Source
    from distill_lab.generation.engines.llama_cpp import LlamaCppEngine
    from distill_lab.generation.engines.transformers import TransformersEngine

    ExportEngine: TypeAlias = LlamaCppEngine | TransformersEngine
    """What an export is loaded into for its check."""


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of an export; each target uses those that it needs."""

    types: tuple[str, ...] = ("Q8_0",)
    """gguf, ollama: how weights are stored."""
    dtype: Dtype = "auto"
    """safetensors, hub: data type of the weights; auto: as they are."""
    repo: str = ""
    """hub: owner/name."""
    private: bool = True
    """hub: nobody else sees the repository."""
    dry_run: bool = False
    """hub: upload nothing."""


@dataclass(frozen=True, slots=True)
class Job:
    """One export."""

    source: Source
    folder: Path
    """The student as a plain model directory: adapters are merged."""
    out: Path
    """Where the files go; exists and is empty."""
    options: Options


@dataclass(frozen=True, slots=True)
class Exported:
    """A file or directory that was written."""

    path: Path
    open: Callable[[PreTrainedTokenizerBase], ExportEngine] | None = None
    """Load it again; None if it holds no weights."""
    loaded_with: str = ""
    """The program that `open` uses."""
    kind: str = "plain"
    """What the model card calls it: a key of `model_card.RELATIONS`."""
    weights: bool = True
    """Whether it holds the model, rather than settings for it."""
    notes: tuple[str, ...] = ()
    """What a user should know or do next."""

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def target_names() -> list[str]:
    """Names of all targets: the modules of this package except helpers (`_*.py`)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_target(name: str) -> ModuleType:
    """The module of a target. Raises UserError for an unknown one."""
    if name not in target_names():
        raise UserError(f"--to {name}: no such target; choose from {', '.join(target_names())}")
    return importlib.import_module(f"{__name__}.{name}")
