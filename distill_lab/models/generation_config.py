"""A model's own sampling settings: generation_config -> the values to sample with, by the same rule in every engine.

    generation_settings(ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct"))  -> {"temperature": 0.7, "top_p": 0.8, ...}
    with_generation_config(SamplingConfig(from_model=True), own)          -> SamplingConfig(temperature=0.7, top_p=0.8, ...)

The rule: without `from_model`, no engine uses these settings. With it, each of `FIELDS` that has the lab's default takes
the model's value; fields set to other values keep them. A model whose generation_config does not sample (`do_sample` is not
true) is decoded greedily, and only its repetition penalty counts. A server has its own settings for its model: with
`from_model` the request omits these fields (`_chat_completions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.errors import DataError, ModelError, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.models.names import api_engine
from distill_lab.types import Fields

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
REMEDY = "download the model again, or remove this file"
FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of SamplingConfig that have the same name in a generation_config."""


def settings_in(generation: GenerationConfig | Fields) -> dict[str, float]:
    """The sampling settings of a generation_config that differ from the lab's defaults, in the order of FIELDS."""
    found = generation if isinstance(generation, Mapping) else generation.to_dict()
    values = {name: value for name in FIELDS if isinstance(value := found.get(name), (int, float))}
    if not found.get("do_sample"):
        values = {name: value for name, value in values.items() if name == "repetition_penalty"}
    else:
        values = {"temperature": 1.0, **values}  # transformers' default for sampling
    return {name: value for name, value in values.items() if value != SamplingConfig.model_fields[name].default}


def generation_settings(model: ModelConfig) -> dict[str, float]:
    """Like `settings_in`, for the model's generation_config file; {} if it has none, and for a server's model."""
    if api_engine(model.model):
        return {}
    from transformers import GenerationConfig

    from distill_lab.models.hub import hub_arguments
    from distill_lab.models.names import base_of, is_adapter, resolve

    path = resolve(model.model)
    if is_adapter(path):
        return generation_settings(base_of(model))
    arguments = {name: value for name, value in hub_arguments(path, model).items() if name != "trust_remote_code"}
    file = Path(path) / FILE
    if Path(path).is_dir():
        if not file.is_file():
            return {}
        try:
            found = read_record(file)
        except DataError as error:
            raise ModelError(model.model, f"{FILE}: {error.reason}; {REMEDY}") from None
    else:
        try:
            found = GenerationConfig.from_pretrained(path, **arguments).to_dict()
        except OSError:
            return {}
    _check(found, model.model)
    return settings_in(found)


def _check(found: Fields, name: str) -> None:
    """Raise ModelError if a generation_config has a value of another kind than it must have."""
    for field in FIELDS:
        value = found.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
            raise ModelError(name, f"{FILE}: {field} {str(value)[:60]!r} is not a number; {REMEDY}")
    ends = found.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and (isinstance(end, bool) or not isinstance(end, int) or end < 0):
            raise ModelError(name, f"{FILE}: eos_token_id {str(end)[:60]!r} is not a token's number; {REMEDY}")
    if isinstance(ends, list) and None in ends:
        raise ModelError(name, f"{FILE}: eos_token_id contains null; {REMEDY}")


def with_generation_config(sampling: SamplingConfig, own: Mapping[str, float]) -> SamplingConfig:
    """`sampling` with the model's settings applied if `from_model` is set. The result has `from_model=False`."""
    if not sampling.from_model:
        return sampling
    defaults = SamplingConfig.model_fields
    taken = {name: value for name, value in own.items() if getattr(sampling, name) == defaults[name].default}
    try:
        return SamplingConfig.model_validate({**sampling.model_dump(), **taken, "from_model": False})
    except ValidationError as error:
        problems = "; ".join(f"{each['loc'][0]} {each['input']}: {each['msg']}" for each in error.errors())
        raise UserError(
            f"{FILE} of the model: {problems}; set these yourself, or leave out sampling.from-model"
        ) from None


def resolve_sampling(model: ModelConfig, sampling: SamplingConfig) -> tuple[SamplingConfig, str]:
    """The settings to sample `model` with, and a note about its generation_config; the note is empty if it has none."""
    if api_engine(model.model):
        return sampling, f"{model.model}: its server's sampling settings apply" if sampling.from_model else ""
    own = generation_settings(model)
    if not own:
        return with_generation_config(sampling, own), ""
    listed = ", ".join(f"{name} {value:g}" for name, value in own.items())
    resolved = with_generation_config(sampling, own)
    if not sampling.from_model:
        return resolved, f"{model.model}: not using its generation_config ({listed}); sampling.from-model turns it on"
    used = ", ".join(f"{name} {getattr(resolved, name):g}" for name in own)
    return resolved, f"{model.model}: sampling with its generation_config ({used})"
