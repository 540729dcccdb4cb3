"""What generates: prompts in, completions out. One file per engine; the file name is the registry.

    engine = load_engine(ModelConfig(model="tiny:teacher"), EngineConfig())
    for completion in engine.generate(prompts, SamplingConfig()): ...

An engine module has two functions: `load(model, config) -> Engine`, and `preference() -> int`, how well it suits this
machine (0: only where it is asked for by name). `auto` takes the highest. `preference` must be quick and not raise.
A model named PREFIX:NAME belongs to the engine PREFIX_api, where there is one, whatever engine is chosen: it runs on a
server, only a teacher can be one, and its weights are not here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Protocol

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.models.names import api_engine
from distill_lab.types import Completion, Prompt


class Engine(Protocol):
    """A loaded model that answers."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, in any order, each as soon as it is done."""
        ...


def engine_names() -> list[str]:
    """The engines there are: the modules of this package, except its helpers (`_*.py`)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_engine(model: ModelConfig, config: EngineConfig, *, on_note: Callable[[str], None] | None = None) -> Engine:
    """The engine `config` names, its model loaded. Raises UserError for an unknown name, ModelError for the model.

    on_note: is told what a user should know of how the model is run.
    """
    with activity.doing(f"loading {model.model}"):
        engine: Engine = _module(chosen_engine(model, config)).load(model, config)
    note = getattr(engine, "note", "")
    if note and on_note is not None:
        on_note(f"{model.model}: {note}")
    return engine


def complete(engine: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
    """As `engine.generate`. Raises UserError where it ends with other than `num_samples` completions of every prompt."""
    missing = {(prompt.id, sample) for prompt in prompts for sample in range(sampling.num_samples)}
    number = len(missing)
    for completion in engine.generate(prompts, sampling):
        missing.discard((completion.id, completion.sample))
        yield completion
    if missing:
        raise UserError(
            f"the engine returned {number - len(missing)} of {number} completions; run the same command again, or take "
            "another engine (--engine)"
        )


def chosen_engine(model: ModelConfig, config: EngineConfig) -> str:
    """The name of the engine that `load_engine` takes. Raises UserError for an unknown one."""
    if server := api_engine(model.model):
        return server
    if config.engine == "auto":
        if model.model.lower().endswith(".gguf"):
            return "transformers"
        return max(engine_names(), key=lambda name: _module(name).preference())
    if config.engine not in engine_names():
        raise UserError(f"no engine {config.engine!r}; there are: auto, {', '.join(engine_names())}")
    return config.engine


def settled(model: ModelConfig, config: EngineConfig) -> ModelConfig:
    """`model` with the dtype and quantization it has on the engine of this process (`models.settled`).

    As it is where another process or library decides: a server, vLLM, workers of a cluster. Raises ModelError.
    """
    if chosen_engine(model, config) != "transformers":
        return model
    from distill_lab.models.loading import settled

    return settled(model)


def check_engine(model: ModelConfig, config: EngineConfig) -> None:
    """Raise what `load_engine` raises before it loads: no such engine, its package or its server's address missing."""
    module = _module(chosen_engine(model, config))
    if api_engine(model.model):
        module.load(model, config)  # sends nothing
    elif "check" in vars(module):
        module.check(config)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
