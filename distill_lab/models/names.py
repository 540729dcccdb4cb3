"""Resolve model names: a tiny: name, a directory, a GGUF file, a hub id or a server's model. Loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError
from distill_lab.tiny import FAMILY

ENGINES = Path(__file__).resolve().parent.parent / "generation" / "engines"
"""Folder whose file names are the engines; not imported here, because engines import this package."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(model: str) -> str:
    """The directory or GGUF file that a tiny: name or local path refers to, as a string; a hub id is returned unchanged.

    Raises ModelError for an unknown tiny: name, a directory without a model, a server's model, and anything that is not a
    hub id either.
    """
    if api_engine(model):
        raise ModelError(model, "is a model on a server; only a teacher can be one; use a directory or Hugging Face id")
    if model.startswith("tiny:"):
        path = FAMILY / model.removeprefix("tiny:")
        if (path / "config.json").is_file():
            return str(path)
        known = ", ".join(f"tiny:{folder.parent.name}" for folder in sorted(FAMILY.glob("*/config.json"))) or "none"
        raise ModelError(model, f"there is no such embedded model; choose from: {known}")
    path = Path(model).expanduser()
    if model and path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ModelError(model, "this directory contains no model (no config.json); give the model's directory")
        return str(path)
    if path.is_file():
        if is_gguf(str(path)):
            return str(path)
        raise ModelError(model, "this is a file; give the directory with config.json and the weights, or a .gguf file")
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelError(model, "no such directory, and not a Hugging Face id (owner/name); check the path")
    return model


def is_gguf(path: str) -> bool:
    """Whether a path is an existing GGUF file, llama.cpp's single-file model format."""
    return path.lower().endswith(".gguf") and Path(path).is_file()


def is_adapter(path: str) -> bool:
    """Whether a directory contains adapters (LoRA) without their base model."""
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


def base_of(adapter: ModelConfig) -> ModelConfig:
    """The base model of the adapters in the directory `adapter.model`, with the other settings of `adapter`."""
    settings = json.loads((Path(resolve(adapter.model)) / "adapter_config.json").read_text(encoding="utf-8"))
    base = {"model": settings["base_model_name_or_path"], "revision": settings.get("revision")}
    return adapter.model_copy(update=base)


def has_tokenizer(folder: Path) -> bool:
    """Whether a directory contains a tokenizer; next to a GGUF file, it is used instead of the one in the file."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def api_engine(model: str) -> str | None:
    """The engine for a model's prefix (openai:NAME: openai_api); None for a model with local weights."""
    prefix, colon, _ = model.partition(":")
    name = f"{prefix}_api"
    return name if colon and prefix.isidentifier() and (ENGINES / f"{name}.py").is_file() else None
