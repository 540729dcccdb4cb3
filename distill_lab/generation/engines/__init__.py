"""Engines generate completions: prompts in, completions out. One file per engine; the file name is the engine's name.

    engine = load_engine(ModelConfig(model="tiny:teacher"), EngineConfig())
    for completion in engine.generate(prompts, SamplingConfig()): ...

An engine module has two functions: `load(model, config) -> Engine`, and `preference() -> int`, how well it suits this
machine (0: use it only if requested by name). `auto` takes the highest. `preference` must be quick and must not raise. A
model named PREFIX:NAME always uses the engine PREFIX_api, if there is one: it runs on a server, its weights are not on this
machine, and only a teacher can be such a model.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.models.names import api_engine
from distill_lab.types import Completion, JsonObject, Prompt


class Engine(Protocol):
    """A loaded model that generates."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """`num_samples` completions of every prompt, in any order, each as soon as it is done."""
        ...


@runtime_checkable
class ServerEngine(Protocol):
    """An engine whose model runs on a server."""

    on_note: Callable[[str], None]
    """Receives what a user should know while it generates."""

    def record(self, sampling: SamplingConfig) -> JsonObject:
        """What requests contain, and which settings they leave to the server, for run.json."""
        ...

    def for_output(self, output: Path, paid: Sequence[Path] = ()) -> Engine:
        """The engine that fills `output`; paid: other outputs of the same run, whose costs count too."""
        ...

    def finished(self) -> None:
        """All completions are on disk."""
        ...


def engine_names() -> list[str]:
    """Names of all engines: the modules of this package except helpers (`_*.py`)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_engine(model: ModelConfig, config: EngineConfig, *, on_note: Callable[[str], None] | None = None) -> Engine:
    """The engine named in `config`, with its model loaded. Raises UserError for an unknown name, ModelError for the model.

    on_note: receives what a user should know about how the model is run.
    """
    with activity.doing(f"loading {model.model}"):
        engine: Engine = _module(chosen_engine(model, config)).load(model, config)
    note = getattr(engine, "note", "")
    if note and on_note is not None:
        on_note(f"{model.model}: {note}")
    if on_note is not None and isinstance(engine, ServerEngine):
        engine.on_note = on_note
    return engine


def complete(engine: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
    """Like `engine.generate`. Raises UserError if it ends without `num_samples` completions of every prompt."""
    missing = {(prompt.id, sample) for prompt in prompts for sample in range(sampling.num_samples)}
    number = len(missing)
    for completion in engine.generate(prompts, sampling):
        missing.discard((completion.id, completion.sample))
        yield completion
    if missing:
        raise UserError(
            f"the engine returned only {number - len(missing)} of {number} completions; run the same command again, or "
            "use another engine (--engine)"
        )


def chosen_engine(model: ModelConfig, config: EngineConfig) -> str:
    """The name of the engine that `load_engine` uses. Raises UserError for an unknown one."""
    if server := api_engine(model.model):
        return server
    if config.engine == "auto":
        if model.model.lower().endswith(".gguf"):
            return "transformers"
        return max(engine_names(), key=lambda name: _module(name).preference())
    if config.engine not in engine_names():
        raise UserError(f"no engine {config.engine!r}; choose from: auto, {', '.join(engine_names())}")
    return config.engine


def resolve_engine_precision(model: ModelConfig, config: EngineConfig) -> ModelConfig:
    """`model` with the dtype and quantization it will have on this engine (`loading.resolve_precision`).

    Unchanged if another process or library decides: a server, vLLM, workers of a cluster. Raises ModelError.
    """
    if chosen_engine(model, config) != "transformers":
        return model
    from distill_lab.models.loading import resolve_precision

    return resolve_precision(model)


def check_engine(model: ModelConfig, config: EngineConfig) -> None:
    """Raise UserError for problems that need no loading: no such engine, missing package, missing server address."""
    module = _module(chosen_engine(model, config))
    if api_engine(model.model):
        module.load(model, config)  # sends nothing
    elif "check" in vars(module):
        module.check(config)


def check_format(model: ModelConfig, config: EngineConfig, sampling: SamplingConfig, *, flag: str) -> None:
    """Raise UserError if answers in a JSON schema are requested of an engine that cannot give them."""
    name = chosen_engine(model, config)
    if sampling.response_format and not getattr(_module(name), "TAKES_RESPONSE_FORMAT", False):
        raise UserError(
            f"{model.model}: the engine {name} cannot keep answers to {flag}.response-format; remove it, or ask a server "
            "that can (vllm serve, then openai:NAME)"
        )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
