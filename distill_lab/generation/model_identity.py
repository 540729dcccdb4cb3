"""What a model is, as far as its answers depend on it: ModelConfig -> settings and content, for keys of results.

weights_of(ModelConfig(model="runs/first/student"))     -> [{"files": "9f86d0...", "quantization": "none", ...}]
model_inputs(ModelConfig(model="openai:gpt"), engine)   -> what a stage of a run or a command's output is made with
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError
from distill_lab.files.fingerprints import plain
from distill_lab.generation.engines import settled
from distill_lab.models.names import api_engine

NO_MATTER = {
    "base_url", "extra_body", "max_concurrency", "timeout_s", "max_retries",  # of servers
    "batch_size", "num_workers", "data_parallel_size", "gpu_memory_utilization", "measure_budget_s",
}  # fmt: skip
"""Engine settings that no answer of a model here depends on. Others are part of a key where they are not the default."""


def model_inputs(model: ModelConfig, engine: EngineConfig | None = None) -> dict[str, Any]:
    """What a result depends on of a model. A server's model stays the same at another address.

    engine: of a model that answers, whose dtype and quantization on this machine then count too.
    """
    if api_engine(model.model):
        extra = json.loads(engine.extra_body or "{}") if engine else {}
        return {"model": model.model_dump(), "extra_body": extra}
    return {"model": weights_of(as_computed(model, engine) if engine else model)}


def as_computed(model: ModelConfig, engine: EngineConfig) -> ModelConfig:
    """`model` with the dtype and quantization it has here, as it is where that cannot be known before it is loaded."""
    from huggingface_hub import try_to_load_from_cache

    from distill_lab.models.names import resolve

    place = resolve(model.model)
    known = Path(place).exists() or isinstance(
        try_to_load_from_cache(place, "config.json", revision=model.revision), str
    )
    try:
        return settled(model, engine) if known else model
    except ModelError:
        return model  # one that cannot be read; loading it will say so


def asked_model(model: ModelConfig, engine: EngineConfig) -> dict[str, Any]:
    """As `model_inputs`, with dtype and quantization as they were asked for.

    For the output of a command, which nobody tells what an earlier execution chose.
    """
    if api_engine(model.model):
        return model_inputs(model, engine)
    return {"model": weights_of(model), "engine": engine_settings(engine)}


def answer_inputs(model: ModelConfig, engine: EngineConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """What a model's answers depend on besides the prompts."""
    return {**asked_model(model, engine), "sampling": sampling.model_dump()}


def engine_settings(engine: EngineConfig) -> dict[str, Any]:
    """The settings of an engine that answers of a model here depend on, those that are not the default."""
    return engine.model_dump(exclude=NO_MATTER, exclude_defaults=True)


def shown_name(model: ModelConfig) -> str:
    """A model's name for people: of a directory its whole path, of a hub model its id and the revision asked for."""
    from distill_lab.models.names import resolve

    if model.model.startswith("tiny:") or api_engine(model.model):
        return model.model
    place = resolve(model.model)
    if Path(place).is_dir():
        return str(Path(place).resolve()).encode(errors="replace").decode()
    return f"{place}@{model.revision}" if model.revision else place


def weights_of(model: ModelConfig) -> list[dict[str, Any]]:
    """What a model is made of: settings and content, for adapters those of the model below them too.

    A directory or file: its content (`fingerprints`), wherever it stands. A hub id: the id, and the commit it leads to.
    Raises ModelError for a model that is not there.
    """
    from distill_lab.models.names import base_of, has_tokenizer, is_adapter, resolve

    place, settings = resolve(model.model), model.model_dump(exclude={"model", "revision"})
    path = Path(place)
    if path.exists():
        below = weights_of(base_of(model)) if path.is_dir() and is_adapter(place) else []
        if path.is_file() and has_tokenizer(path.parent):
            beside = sorted(path.parent.glob("*token*")) + sorted(path.parent.glob("chat_template*"))
            settings["tokenizer"] = [plain(file) for file in beside if file.is_file()]
        return [{"files": plain(path), **settings}, *below]
    return [{"id": place, "commit": hub_commit(place, model.revision), **settings}]


def hub_commit(name: str, revision: str | None) -> str | None:
    """The commit that a hub model's revision is now; where the hub does not answer, the one this machine holds.

    None where neither is known.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and (commit := _commit_on_hub(name, revision)):
        return commit
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


@lru_cache
def _commit_on_hub(name: str, revision: str | None) -> str | None:
    """Asked once in a process, so that a run has one model from its start to its end."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    from distill_lab.models.loading import HUB_TIMEOUT_S

    try:
        return model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).sha
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return None  # loading it will say what is wrong
