"""One worker of the engine ray: holds another engine in a process of its own, anywhere in the cluster.

In: blocks of prompts. Out: each completion as soon as it is done, and at the end, where the engine raised, a `Failure`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import EngineDeadError, UserError
from distill_lab.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the rest of a block has no completions."""

    reason: str
    worker_died: bool = False
    """Whether the worker can answer nothing more."""


class Worker:
    """Loads a model once, then answers block after block."""

    def load(self, model: ModelConfig, config: EngineConfig) -> str:
        """Load it. Returns what is wrong with model or settings, "" for nothing."""
        from distill_lab.generation.engines import Engine, load_engine

        # Where this is set, the engine of choice would be ray again.
        os.environ.pop("RAY_ADDRESS", None)
        try:
            self._engine: Engine = load_engine(model, config)
        except UserError as error:
            return str(error)
        return ""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion | Failure]:
        """The completions of a block."""
        try:
            yield from self._engine.generate(prompts, sampling)
        except EngineDeadError as error:
            yield Failure(str(error), worker_died=True)
        except UserError as error:
            yield Failure(str(error))
        except Exception as error:  # whatever a row does to an engine, the driver decides about it
            yield Failure(f"{type(error).__name__}: {error}")
