"""A model's own sampling settings: its generation_config -> the values that are sampled with, by one rule in every engine.

    own_settings(ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct"))     -> {"temperature": 0.7, "top_p": 0.8, "top_k": 20, ...}
    with_own(SamplingConfig(from_model=True), own)                    -> SamplingConfig(temperature=0.7, top_p=0.8, ...)

The rule: without `from_model` none of these settings is used, whatever samples. With it, each of `FIELDS` that stands at the
lab's default takes the model's value; what was set to anything else stays. A model whose generation_config does not sample
(`do_sample` is not true) is greedy, and of its settings only the repetition penalty counts.
A server's model has its settings there: with `from_model` those fields are left out of the request (`chat_completions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.models.names import api_engine

if TYPE_CHECKING:
    from transformers import GenerationConfig

FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Fields of SamplingConfig that a generation_config has under the same names."""


def settings_in(generation: GenerationConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings of a generation_config that differ from the lab's defaults, in the order of FIELDS."""
    found = generation if isinstance(generation, Mapping) else generation.to_dict()
    values = {name: found[name] for name in FIELDS if found.get(name) is not None}
    if not found.get("do_sample"):
        values = {name: value for name, value in values.items() if name == "repetition_penalty"}
    else:
        values = {"temperature": 1.0, **values}  # transformers' own where it samples
    return {name: value for name, value in values.items() if value != SamplingConfig.model_fields[name].default}


def own_settings(model: ModelConfig) -> dict[str, Any]:
    """As `settings_in`, of the file beside the model's weights; {} where it has none, and for a server's model."""
    if api_engine(model.model):
        return {}
    from transformers import GenerationConfig

    from distill_lab.models.loading import _hub_arguments
    from distill_lab.models.names import base_of, is_adapter, resolve

    path = resolve(model.model)
    if is_adapter(path):
        return own_settings(base_of(model))
    arguments = {name: value for name, value in _hub_arguments(path, model).items() if name != "trust_remote_code"}
    if Path(path).is_dir() and not (Path(path) / "generation_config.json").is_file():
        return {}
    try:
        return settings_in(GenerationConfig.from_pretrained(path, **arguments))
    except OSError:
        return {}


def with_own(sampling: SamplingConfig, own: Mapping[str, Any]) -> SamplingConfig:
    """`sampling` with the model's settings where it asks for them. What comes back asks for none."""
    if not sampling.from_model:
        return sampling
    defaults = SamplingConfig.model_fields
    taken = {name: value for name, value in own.items() if getattr(sampling, name) == defaults[name].default}
    return sampling.model_copy(update={**taken, "from_model": False})


def resolve_sampling(model: ModelConfig, sampling: SamplingConfig) -> tuple[SamplingConfig, str]:
    """What `model` samples with, and a sentence about its own settings; empty where it has none."""
    if api_engine(model.model):
        return sampling, f"{model.model}: its server's own sampling settings apply" if sampling.from_model else ""
    own = own_settings(model)
    if not own:
        return with_own(sampling, own), ""
    listed = ", ".join(f"{name} {value:g}" for name, value in own.items())
    resolved = with_own(sampling, own)
    if not sampling.from_model:
        return resolved, f"{model.model}: its generation_config ({listed}) is not used; sampling.from-model uses it"
    used = ", ".join(f"{name} {getattr(resolved, name):g}" for name in own)
    return resolved, f"{model.model}: samples by its generation_config ({used})"
