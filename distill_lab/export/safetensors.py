"""Target safetensors: the student as a plain Hugging Face directory, adapters merged, in the data type you choose.

transformers, vLLM, TGI and SGLang open it.

    distill export runs/first --to safetensors --dtype bf16
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.config import Dtype, EngineConfig, ModelConfig
from distill_lab.export import Exported, Job, Options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from distill_lab.export import ExportEngine

SHORT: dict[str, Dtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def check(options: Options) -> None:
    """Nothing that could be missing."""


def export(job: Job) -> list[Exported]:
    """Write the model, and the tokenizer with settings that every tool reads."""
    from distill_lab.models.loading import load_model
    from distill_lab.train.portable import make_portable

    dtype = job.options.dtype if job.options.dtype != "auto" else stored_dtype(job)
    model, tokenizer = load_model(ModelConfig(model=str(job.folder), dtype=dtype))
    with _without_bars():
        model.save_pretrained(job.out)
    make_portable(job.out, tokenizer, model.generation_config)
    return [Exported(job.out, partial(reopened, job.out), "transformers", notes=(f"weights in {dtype}",))]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers: only the command line prints."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def stored_dtype(job: Job) -> Dtype:
    """The data type of the student's weights; of merged adapters, that of the model they were trained on."""
    from distill_lab.models.loading import load_config
    from distill_lab.models.names import base_of, is_adapter, resolve

    model = job.source.model
    model = base_of(model) if is_adapter(resolve(model.model)) else model.model_copy(update={"model": str(job.folder)})
    stored = str(load_config(model).dtype).removeprefix("torch.")
    return SHORT.get(stored, "fp32")


def reopened(folder: Path, tokenizer: PreTrainedTokenizerBase) -> ExportEngine:
    """The directory in the engine transformers, with its own tokenizer."""
    from distill_lab.generation.engines.transformers import load
    from distill_lab.models.loading import with_fp32_on_cpu

    return load(with_fp32_on_cpu(ModelConfig(model=str(folder))), EngineConfig(engine="transformers"))
