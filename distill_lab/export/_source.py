"""What is exported: the name of a run or model -> its student, and that student as a plain model directory.

source = find_source("runs/first")
with plain_folder(source, work) as folder: ...
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_lab.config import ModelConfig, Quantization
from distill_lab.errors import ModelError, UserError
from distill_lab.models.names import api_engine, is_adapter, is_gguf, resolve
from distill_lab.report.run_student import read_run, student_of


@dataclass(frozen=True, slots=True)
class Source:
    """A student to export."""

    model: ModelConfig
    run: Path | None
    """The run that made it; None for a model by itself."""

    @property
    def name(self) -> str:
        """A short name for files and for people."""
        text = f"{self.run.resolve().name}-student" if self.run is not None else self.model.model
        if not text.startswith("tiny:") and self.run is None:
            text = Path(resolve(text)).absolute().name
        return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "student"

    @property
    def config(self) -> dict[str, Any]:
        """The settings of its run; {} without a run."""
        return read_run(self.run)[0]["config"] if self.run else {}

    @property
    def place(self) -> Path:
        """The folder that exports go into by default."""
        return self.run / "export" if self.run else Path("export") / self.name


def find_source(text: str, *, quantization: Quantization = "none") -> Source:
    """The student that `text` names: a run directory, a model directory, a tiny: name or a hub id.

    quantization: of adapters, what they were trained on; a run knows it. Raises UserError for anything else.
    """
    path = Path(text).expanduser()
    if (path / "run.json").is_file():
        return Source(student_of(path), path)
    if api_engine(text):
        raise ModelError(text, "is a model on a server; give a directory with its weights")
    try:
        location = resolve(text)
    except ModelError as error:
        raise UserError(f"{error}; or give a run directory, which has a run.json") from None
    if is_gguf(location):
        raise ModelError(text, "is a GGUF file already; give the directory it was made from")
    return Source(ModelConfig(model=text, quantization=quantization), None)


def plain_folder(source: Source, work: Path) -> Path:
    """The student as a model directory without adapters; merged into `work` if it has some. Raises ModelError."""
    location = resolve(source.model.model)
    if not Path(location).is_dir():
        return _downloaded(source.model, location)
    if is_adapter(location):
        from distill_lab.train.lora import merge_directory

        merge_directory(source.model, work / "merged")
        return work / "merged"
    config = json.loads((Path(location) / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ModelError(
            source.model.model, "its weights are stored in 4 or 8 bits; export the model they were made from"
        )
    return Path(location)


def _downloaded(model: ModelConfig, name: str) -> Path:
    """A hub model's files in the local cache, fetched if the hub answers."""
    from huggingface_hub import snapshot_download

    from distill_lab.models.loading import load_config

    load_config(model)  # says what is wrong with the name or the network
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*"]
    return Path(snapshot_download(name, revision=model.revision, allow_patterns=patterns))
