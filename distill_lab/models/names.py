"""What a model name stands for: a tiny: name, a directory, a GGUF file, a hub id or a server's model. Loads nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError
from distill_lab.tiny import FAMILY

ENGINES = Path(__file__).resolve().parent.parent / "generation" / "engines"
"""Its file names are the engines; looked at, not imported: engines load models."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(model: str) -> str:
    """The directory or GGUF file a tiny: name or a local path stands for, as a string; a hub id is returned as it is.

    Raises ModelError for an unknown tiny: name, a directory that holds no model, a server's model, and anything that is
    no hub id either.
    """
    if api_engine(model):
        raise ModelError(model, "is a server's model; only a teacher can be one, give a directory or Hugging Face id")
    if model.startswith("tiny:"):
        path = FAMILY / model.removeprefix("tiny:")
        if (path / "config.json").is_file():
            return str(path)
        known = ", ".join(f"tiny:{folder.parent.name}" for folder in sorted(FAMILY.glob("*/config.json"))) or "none"
        raise ModelError(model, f"the embedded family has no such model; it has: {known}")
    path = Path(model).expanduser()
    if model and path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ModelError(model, "this directory holds no model (no config.json); give the directory that has one")
        return str(path)
    if path.is_file():
        if is_gguf(str(path)):
            return str(path)
        raise ModelError(model, "this is a file; give the directory that holds config.json and the weights, or a .gguf")
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelError(model, "no such directory, and not a Hugging Face id (owner/name) either; check the path")
    return model


def is_gguf(path: str) -> bool:
    """Whether a path is that of a model in one file, as llama.cpp writes it."""
    return path.lower().endswith(".gguf") and Path(path).is_file()


def is_adapter(path: str) -> bool:
    """Whether a directory holds adapters (LoRA) and not the model they belong to."""
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


def base_of(adapter: ModelConfig) -> ModelConfig:
    """The model that the adapters in the directory `adapter.model` belong to, loaded as `adapter` says."""
    settings = json.loads((Path(resolve(adapter.model)) / "adapter_config.json").read_text(encoding="utf-8"))
    base = {"model": settings["base_model_name_or_path"], "revision": settings.get("revision")}
    return adapter.model_copy(update=base)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer stands in a directory; beside a GGUF file it takes the place of the one in the file."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def api_engine(model: str) -> str | None:
    """The engine a model's prefix asks for (openai:NAME: openai_api); None for a model with weights of its own."""
    prefix, colon, _ = model.partition(":")
    name = f"{prefix}_api"
    return name if colon and prefix.isidentifier() and (ENGINES / f"{name}.py").is_file() else None
