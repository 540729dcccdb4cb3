"""Target ollama: a GGUF file and a Modelfile with the student's template, ends and sampling settings.

distill export runs/first --to ollama
cd runs/first/export/ollama && ollama create first -f Modelfile && ollama run first
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_lab.export import Exported, Job, Options, gguf
from distill_lab.export._modelfile import modelfile

if TYPE_CHECKING:
    from pathlib import Path


def check(options: Options) -> None:
    """What the GGUF file needs."""
    gguf.check(options)


def export(job: Job) -> list[Exported]:
    """Write the GGUF files, and a Modelfile for each; that of the first type is called Modelfile."""
    from distill_lab.config import ModelConfig
    from distill_lab.models.generation_config import generation_settings
    from distill_lab.models.loading import load_tokenizer

    model = ModelConfig(model=str(job.folder))
    tokenizer, settings = load_tokenizer(model), generation_settings(model)
    thinking = (job.source.config.get("test_sampling") or {}).get("thinking")
    found = gguf.export(job)
    for place, file in enumerate(list(found)):
        path: Path = job.out / ("Modelfile" if place == 0 else f"Modelfile-{file.path.stem.rpartition('-')[2]}")
        text = modelfile(tokenizer, file.path.name, settings, thinking=thinking)
        path.write_text(text, encoding="utf-8")
        found.append(Exported(path, weights=False, notes=(f"ollama create {job.source.name} -f {path.name}",)))
    return found
