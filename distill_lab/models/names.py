"""Resolve model names: a tiny: name, a directory, a GGUF file, a hub id or a server's model. Loads nothing."""

from __future__ import annotations

import re
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.errors import DataError, ModelError
from distill_lab.files.bookkeeping import read_record
from distill_lab.tiny import FAMILY

ENGINES = Path(__file__).resolve().parent.parent / "generation" / "engines"
"""Folder whose file names are the engines; not imported here, because engines import this package."""
MAX_ADAPTERS = 4
"""Adapters whose base model is adapters again, one after the other."""
MAX_NAME, MAX_PART = 4_000, 255
"""Maximum bytes of a path and of a name in it; longer ones cannot exist."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(model: str) -> str:
    """The directory or GGUF file that a tiny: name or local path refers to, as a string; a hub id is returned unchanged.

    Raises ModelError for an unknown tiny: name, a directory without a model, a server's model, and anything that is not a
    hub id either.
    """
    _check_name(model)
    if api_engine(model):
        raise ModelError(model, "is a model on a server; only a teacher can be one; use a directory or Hugging Face id")
    if model.startswith("tiny:"):
        path = FAMILY / model.removeprefix("tiny:")
        if (path / "config.json").is_file():
            return str(path)
        known = ", ".join(f"tiny:{folder.parent.name}" for folder in sorted(FAMILY.glob("*/config.json"))) or "none"
        raise ModelError(model, f"there is no such embedded model; choose from: {known}")
    path = _path(model)
    if model and path.is_dir():
        if not _is_model(path):
            run = f": {model.rstrip('/')}/student" if _is_model(path / "student") else ""
            raise ModelError(
                model, f"this directory contains no model (no config.json); give the model's directory{run}"
            )
        return str(path)
    if path.is_file():
        if is_gguf(str(path)):
            return str(path)
        raise ModelError(model, "this is a file; give the directory with config.json and the weights, or a .gguf file")
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelError(model, "no such directory, and not a Hugging Face id (owner/name); check the path")
    return model


def _is_model(folder: Path) -> bool:
    """Whether a directory contains a model or adapters."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _check_name(model: str) -> None:
    """Raise ModelError for a name that no path and no model on the hub can have."""
    lengths = [len(part.encode(errors="surrogatepass")) for part in (model, *model.split("/"))]
    if lengths[0] > MAX_NAME or max(lengths[1:]) > MAX_PART:
        raise ModelError(f"{model[:60]}...", "this name is too long for a path or a Hugging Face id; check it")
    if "\0" in model:
        raise ModelError(model.replace("\0", "?"), "this name contains a zero byte; check it")


def _path(name: str) -> Path:
    """A path with ~ expanded, if there is such a user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_gguf(path: str) -> bool:
    """Whether a path is an existing GGUF file, llama.cpp's single-file model format."""
    return path.lower().endswith(".gguf") and Path(path).is_file()


def is_adapter(path: str) -> bool:
    """Whether a directory contains adapters (LoRA) without their base model."""
    return (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file()


def base_of(adapter: ModelConfig) -> ModelConfig:
    """The base model of the adapters in the directory `adapter.model`, with the other settings of `adapter`.

    Raises ModelError if adapter_config.json is damaged, names no base model, or leads back to the adapters themselves.
    """
    place, seen = Path(resolve(adapter.model)), list[Path]()
    base, revision = _base_in(adapter.model, place)
    following = base
    while following and is_adapter(str(_path(following))):
        if len(seen) >= MAX_ADAPTERS or _path(following).resolve() in (place.resolve(), *seen):
            raise ModelError(adapter.model, "its adapter_config.json names adapters as the base model, in a circle")
        seen.append(_path(following).resolve())
        following, _ = _base_in(following, seen[-1])
    here = base.startswith("tiny:") or _path(base).exists()
    return adapter.model_copy(update={"model": base, "revision": None if here else revision})


def _base_in(name: str, folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base model in the adapter_config.json of a directory."""
    remedy = "copy the adapters again, or write the base model's name into it"
    try:
        settings = read_record(folder / "adapter_config.json")
    except DataError as error:
        raise ModelError(name, f"adapter_config.json: {error.reason}; {remedy}") from None
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(base, str) or not base or api_engine(base):
        raise ModelError(name, f"adapter_config.json: base_model_name_or_path is not the name of a model; {remedy}")
    _check_name(base)
    if not isinstance(revision, (str, type(None))):
        raise ModelError(name, f"adapter_config.json: revision is not text; {remedy}")
    return base, revision or None


def has_tokenizer(folder: Path) -> bool:
    """Whether a directory contains a tokenizer; next to a GGUF file, it is used instead of the one in the file."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def api_engine(model: str) -> str | None:
    """The engine for a model's prefix (openai:NAME: openai_api); None for a model with local weights."""
    prefix, colon, _ = model.partition(":")
    name = f"{prefix}_api"
    return name if colon and prefix.isidentifier() and (ENGINES / f"{name}.py").is_file() else None
