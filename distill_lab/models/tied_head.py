"""Untie an output head that shares its weight with the input embeddings, if adapters change either of them.

    untie_for("my-adapters", model)     before the adapters are attached to `model` or merged into it

peft applies such adapters to one of the two, but merges them into the weight that both share, so the merged model would
compute something else. Therefore each gets a separate weight first, and the config records it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
"""Prefix that peft adds to the names of a model's weights."""


def untie_for(adapter: Path | str, model: PreTrainedModel) -> bool:
    """Untie `model`'s output head from its embeddings if the adapters in a directory change either; return whether it did.

    model: a causal language model of transformers without adapters; changed in place and saved with both weights.
    """
    from peft.utils.save_and_load import load_peft_weights

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return False
    prefixes = tuple(f"{PREFIX}{name}." for name, module in model.named_modules() if module in (head, embeddings))
    if not any(name.startswith(prefixes) for name in load_peft_weights(str(adapter), device="cpu")):
        return False
    untie(model)
    return True


def untie(model: PreTrainedModel) -> None:
    """Give a causal language model's output head a separate copy of the weight it shares with the embeddings."""
    import torch

    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an output head"
    weight = head.weight
    head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
