"""Get a model's sizes from its config: numbers of weights and widths, without loading any weights.

    shape = shape_of(ModelConfig(model="Qwen/Qwen2.5-7B-Instruct"))     # offline for the models of the presets
    shape.num_parameters, shape.hidden, shape.kv_elements(tokens=4096)

Builds the model on torch's meta device, where tensors have sizes but no memory, so that the counts are right for any
architecture: mixtures of experts, sliding windows, output heads that are not tied to the embeddings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.config import ModelConfig
from distill_lab.planning.known_models import config_of
from distill_lab.types import Fields

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

LINEAR_KINDS = ("Linear", "Conv1D")
"""Class names of linear layers (Conv1D is GPT-2's, with transposed weights)."""


@dataclass(frozen=True)
class Linear:
    """Linear layers with the same name and size, except the output head."""

    name: str
    """Last part of the module path, such as q_proj."""
    inputs: int
    outputs: int
    count: int
    """Number of them in the whole model."""


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, in numbers of elements."""

    name: str
    num_parameters: int
    """All weights; shared weights count once."""
    embedding: int
    """Weights of the input embeddings, vocabulary x hidden."""
    untied_head: int
    """Weights of the output head; 0 if it shares the weights of the embeddings."""
    linears: tuple[Linear, ...]
    """Layers that can be quantized and can get adapters."""
    num_layers: int
    hidden: int
    vocabulary: int
    query: int
    """Heads x head size."""
    key_value: int
    """Key-value heads x head size."""
    heads: int
    mlp_width: int
    """Inner width per token in one layer; in a mixture of experts, the sum over the token's experts."""
    experts_per_token: int
    """0 without a mixture of experts."""
    num_experts: int
    gated: bool
    """Whether the MLP has a gate in addition to its up-projection."""
    norms_per_layer: int
    """Number of norms of hidden size."""
    normed_heads: bool
    """Whether queries and keys are normalized per head."""
    windows: tuple[int, ...]
    """For each layer, the number of tokens whose keys and values are kept: 0 means all, -1 none (linear attention)."""
    softcap: bool
    context: int

    @property
    def num_linear(self) -> int:
        """Weights in linear layers, except the output head."""
        return sum(each.inputs * each.outputs * each.count for each in self.linears)

    @property
    def largest_linear(self) -> int:
        """Weights of the largest linear layer."""
        return max((each.inputs * each.outputs for each in self.linears), default=0)

    def adapter_weights(self, r: int, targets: tuple[str, ...] = ("all-linear",)) -> int:
        """Weights of adapters of rank `r` on `targets`."""
        return sum(
            r * (each.inputs + each.outputs) * each.count
            for each in self.linears
            if "all-linear" in targets or each.name in targets
        )

    def kv_elements(self, tokens: int) -> int:
        """Number of key and value elements for one row of `tokens` tokens."""
        kept = sum(tokens if window == 0 else max(0, min(tokens, window)) for window in self.windows)
        return 2 * self.key_value * kept


def shape_of(model: ModelConfig) -> Shape:
    """The shape of a model: a known id from the lab's table, any other from its config. Raises ModelError.

    A directory of adapters has the shape of its base model.
    """
    from distill_lab.models.loading import load_config
    from distill_lab.models.names import base_of, is_adapter, resolve

    known = config_of(model.model)
    if known is not None:
        return _known_shape(model.model)
    path = resolve(model.model)
    if Path(path).is_dir() and is_adapter(path):
        return shape_of(base_of(model))
    return measure(load_config(model), name=model.model, trust_remote_code=model.trust_remote_code)


@lru_cache(maxsize=64)
def _known_shape(name: str) -> Shape:
    config = config_of(name)
    assert config is not None
    from transformers import AutoConfig

    kind = str(config.pop("model_type"))
    return measure(AutoConfig.for_model(kind, **config), name=name)


def measure(config: PreTrainedConfig, *, name: str, trust_remote_code: bool = False) -> Shape:
    """The shape of the model for a transformers config."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = model.config.get_text_config(decoder=True)
    fields = text.to_dict()
    heads = text.num_attention_heads
    size = fields.get("head_dim") or text.hidden_size // heads
    kv_heads = fields.get("num_key_value_heads") or heads
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = _layers(model, text.num_hidden_layers)
    found: Counter[tuple[str, int, int]] = Counter()
    for path, module in model.named_modules():
        if type(module).__name__ in LINEAR_KINDS and module is not head:
            outputs, inputs = module.get_parameter("weight").shape
            found[path.rpartition(".")[2], inputs, outputs] += 1
    first = list(layers[0].named_modules()) if layers else []
    sizes = [
        module.get_parameter("weight").numel()
        for _, module in first
        if "Norm" in type(module).__name__ and hasattr(module, "weight")
    ]
    experts = fields.get("num_experts_per_tok") or 0
    width = fields.get("intermediate_size") or fields.get("n_inner") or 4 * text.hidden_size
    if experts:
        width = (fields.get("moe_intermediate_size") or width) * experts + (
            fields.get("shared_expert_intermediate_size") or 0
        )
    tied = head is None or head.weight is embedding.weight or text.tie_word_embeddings
    return Shape(
        name=name,
        num_parameters=model.num_parameters(),
        embedding=embedding.get_parameter("weight").numel(),
        untied_head=0 if tied or head is None else head.weight.numel(),
        linears=tuple(Linear(*key, count) for key, count in sorted(found.items())),
        num_layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        query=heads * size,
        key_value=kv_heads * size,
        heads=heads,
        mlp_width=width,
        experts_per_token=experts,
        num_experts=fields.get("num_experts") or fields.get("num_local_experts") or 0 if experts else 0,
        gated=any("gate" in path.rpartition(".")[2] for path, _ in first) or bool(experts),
        norms_per_layer=sum(number == text.hidden_size for number in sizes) or 2,
        normed_heads=any(number == size for number in sizes),
        windows=_windows(fields, text.num_hidden_layers),
        softcap=bool(fields.get("final_logit_softcapping")),
        context=fields.get("max_position_embeddings") or 0,
    )


def _layers(model: PreTrainedModel, number: int) -> Sequence[torch.nn.Module]:
    """The decoder's layers."""
    from torch.nn import ModuleList

    lists = (list(module) for module in model.modules() if type(module) is ModuleList and len(module) == number)
    return next(lists, [])


def _windows(fields: Fields, number: int) -> tuple[int, ...]:
    given, kinds = fields.get("sliding_window"), fields.get("layer_types")
    window = given if isinstance(given, int) else 0
    if kinds and isinstance(kinds, (list, tuple)):
        known = {"full_attention": 0, "sliding_attention": window, "linear_attention": -1, "chunked_attention": window}
        return tuple(known.get(kind, 0) for kind in kinds)
    return (window if fields.get("use_sliding_window", True) else 0,) * number
