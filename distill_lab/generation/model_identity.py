"""Identify a model by everything its answers depend on: ModelConfig -> settings and content, for result keys.

weights_of(ModelConfig(model="runs/first/student"))     -> [{"files": "9f86d0...", "quantization": "none", ...}]
model_inputs(ModelConfig(model="openai:gpt"), engine)   -> inputs for the key of a run's stage or a command's output
"""

from __future__ import annotations

from pathlib import Path

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError
from distill_lab.files.fingerprints import plain
from distill_lab.generation.engines import resolve_engine_precision
from distill_lab.models.names import api_engine
from distill_lab.types import JsonObject

NOT_IN_KEY = {
    "base_url", "extra_body", "max_concurrency", "timeout_s", "max_retries",  # of servers
    "price", "batch", "batch_poll_s",
    "batch_size", "num_workers", "data_parallel_size", "gpu_memory_utilization", "measure_budget_s",
}  # fmt: skip
"""Engine settings that do not affect a local model's completions. Others are part of a key unless they are the default."""


def model_inputs(model: ModelConfig, engine: EngineConfig | None = None) -> JsonObject:
    """The properties of a model that a result depends on. A server's model stays the same at another address.

    engine: for a model that generates; then its dtype and quantization on this machine count too.
    """
    if api_engine(model.model):
        extra = engine.recorded_fields if engine else {}
        return {"model": model.model_dump(), "extra_body": extra}
    return {"model": weights_of(resolve_local_precision(model, engine) if engine else model)}


def resolve_local_precision(model: ModelConfig, engine: EngineConfig) -> ModelConfig:
    """`model` with the dtype and quantization it has here; unchanged if they are unknown before it is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    from distill_lab.models.names import resolve

    location = resolve(model.model)
    known = Path(location).exists() or isinstance(
        try_to_load_from_cache(location, "config.json", revision=model.revision), str
    )
    try:
        return resolve_engine_precision(model, engine) if known else model
    except ModelError:
        return model  # unreadable; loading it will raise the error


def requested_model_inputs(model: ModelConfig, engine: EngineConfig) -> JsonObject:
    """Like `model_inputs`, but with dtype and quantization as requested (`auto` stays `auto`).

    For the output of a command, which does not know what an earlier execution chose.
    """
    if api_engine(model.model):
        return model_inputs(model, engine)
    return {"model": weights_of(model), "engine": engine_settings(engine)}


def answer_inputs(model: ModelConfig, engine: EngineConfig, sampling: SamplingConfig) -> JsonObject:
    """Everything a model's answers depend on besides the prompts."""
    return {**requested_model_inputs(model, engine), "sampling": sampling.model_dump()}


def engine_settings(engine: EngineConfig) -> JsonObject:
    """The engine settings that a local model's answers depend on, without those at their default."""
    return engine.model_dump(exclude=NOT_IN_KEY, exclude_defaults=True)


def shown_name(model: ModelConfig) -> str:
    """A model's name for people: the absolute path of a directory, or the hub id with the requested revision."""
    from distill_lab.models.names import resolve

    if model.model.startswith("tiny:") or api_engine(model.model):
        return model.model
    location = resolve(model.model)
    if Path(location).is_dir():
        return str(Path(location).resolve()).encode(errors="replace").decode()
    return f"{location}@{model.revision}" if model.revision else location


def weights_of(model: ModelConfig) -> list[JsonObject]:
    """A model's settings and content, followed by those of its base model if it is an adapter.

    A directory or file counts by content (`fingerprints`), wherever it is; a hub id by the id and its commit. Raises
    ModelError if there is no such model.
    """
    from distill_lab.models.names import base_of, has_tokenizer, is_adapter, resolve

    location, settings = resolve(model.model), model.model_dump(exclude={"model", "revision"})
    path = Path(location)
    if path.exists():
        base = weights_of(base_of(model)) if path.is_dir() and is_adapter(location) else []
        if path.is_file() and has_tokenizer(path.parent):
            files = sorted(path.parent.glob("*token*")) + sorted(path.parent.glob("chat_template*"))
            settings["tokenizer"] = [plain(file) for file in files if file.is_file()]
        return [{"files": plain(path), **settings}, *base]
    return [{"id": location, "commit": hub_commit(location, model.revision), **settings}]


def hub_commit(name: str, revision: str | None) -> str | None:
    """The current commit of a hub model's revision; if the hub does not answer, the commit in the local cache.

    None if neither is known.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and (commit := _commit_on_hub(name, revision)):
        return commit
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _commit_on_hub(name: str, revision: str | None) -> str | None:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    from distill_lab.models.hub import ask_hub

    try:
        return ask_hub(name, revision)
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return None  # loading it will raise the error
