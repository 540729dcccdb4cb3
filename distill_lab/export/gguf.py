"""Target gguf: the student as one file for llama.cpp, Ollama, LM Studio and others, in F16, Q8_0 or a type of llama.cpp's.

Qwen2, Qwen2.5 and Qwen3 are converted here. F16 and Q8_0 are written with the gguf package; Q4_K_M and the other K types
need llama.cpp's quantizer.

    distill export runs/first --to gguf --types Q8_0 Q4_K_M
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.errors import UserError
from distill_lab.export import Exported, Job, Options
from distill_lab.export._gguf_weights import TYPES, unpacked, write_gguf
from distill_lab.export._quantizer import REMEDY, quantize, quantizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_lab.export import ExportEngine

K_TYPES = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q5_K_S", "Q6_K", "Q3_K_M", "Q2_K")
LLAMA_CPP, TRANSFORMERS = "llama.cpp", "transformers (unpacked)"


def check(options: Options) -> None:
    """Refuse unknown types, and what needs a package that is not installed."""
    types = canonical(options.types)
    if find_spec("gguf") is None:
        raise UserError("--to gguf needs the package gguf; pip install gguf")
    if not set(types) <= set(TYPES) and quantizer() is None:
        wanted = ", ".join(kind for kind in types if kind not in TYPES)
        raise UserError(
            f"{wanted}: written by llama.cpp's quantizer, which is not installed; {REMEDY}; or use --types Q8_0"
        )


def canonical(types: tuple[str, ...]) -> tuple[str, ...]:
    """The types as llama.cpp spells them, each once. Raises UserError for an unknown one, or if there is none."""
    known = {kind.upper(): kind for kind in (*TYPES, *K_TYPES)}
    for kind in types:
        if kind.upper() not in known:
            raise UserError(f"--types {kind}: no such type; choose from {', '.join(known.values())}")
    if not types:
        raise UserError(f"--types needs at least one of {', '.join(known.values())}")
    return tuple(dict.fromkeys(known[kind.upper()] for kind in types))


def export(job: Job) -> list[Exported]:
    """Write a file for each type."""
    types = canonical(job.options.types)
    full = job.out / f"{job.source.name}-F16.gguf"
    if set(types) - {"Q8_0"}:
        write_gguf(job.folder, full, "F16", name=job.source.name)
    found = []
    for kind in types:
        path = job.out / f"{job.source.name}-{kind}.gguf"
        if kind == "Q8_0":
            write_gguf(job.folder, path, kind, name=job.source.name)
        elif kind != "F16":
            quantize(full, path, kind)
        program = LLAMA_CPP if find_spec("xllamacpp") else TRANSFORMERS
        found.append(Exported(path, partial(reopened, path, job.folder), program, kind="gguf"))
    if "F16" not in types:
        full.unlink(missing_ok=True)
    return found


def reopened(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> ExportEngine:
    """The file in llama.cpp or, if that is not installed, unpacked by transformers. folder: the model it was made from."""
    from distill_lab.config import ModelConfig
    from distill_lab.generation.engines.llama_cpp import LlamaCppEngine
    from distill_lab.generation.engines.transformers import TransformersEngine
    from distill_lab.models.loading import load_config

    if find_spec("xllamacpp"):
        context = load_config(ModelConfig(model=str(folder))).max_position_embeddings
        return LlamaCppEngine(str(path), tokenizer, context=int(context))
    return TransformersEngine(unpacked(path, folder), tokenizer)
