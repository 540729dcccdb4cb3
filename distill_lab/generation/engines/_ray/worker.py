"""One worker of the engine ray: runs another engine in a separate process anywhere in the cluster.

In: blocks of prompts. Out: each completion as soon as it is done, then a `Failure` if the engine raised an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import EngineDeadError, UserError
from distill_lab.settings import template_date
from distill_lab.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the rest of a block has no completions."""

    reason: str
    worker_died: bool = False
    """Whether the worker is unusable from now on."""


class Worker:
    """Loads a model once, then answers blocks one after another."""

    def load(self, model: ModelConfig, config: EngineConfig, date: str = "") -> str:
        """Load the model. Returns an error message about model or settings, or "" if it is loaded.

        date: for chat templates (`template_date`), the same on every machine.
        """
        from distill_lab.generation.engines import Engine, load_engine

        # If this were set, `auto` would choose ray again.
        os.environ.pop("RAY_ADDRESS", None)
        if date:
            os.environ[template_date.VARIABLE] = date
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
        except Exception as error:  # the driver handles any error that a prompt causes in an engine
            yield Failure(f"{type(error).__name__}: {error}")
