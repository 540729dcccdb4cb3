"""An output head that is the input embeddings under a second name (tied), and adapters that change one of the two.

    untie_for("my-adapters", model)     before the adapters are attached to `model` or merged into it

peft computes such adapters on one of the two and, when it merges them, adds them to the one weight that both share: the
merged model then computes something else. So each gets a weight of its own first, and the config says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PREFIX = "base_model.model."
"""What peft puts before the names of a model's weights."""


def untie_for(adapter: Path | str, model: Any) -> bool:
    """Untie `model`'s output head from its embeddings where the adapters in a directory change either; returns whether.

    model: a causal language model of transformers without adapters; changed in place, saved with both weights.
    """
    from peft.utils.save_and_load import load_peft_weights

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return False
    places = tuple(f"{PREFIX}{name}." for name, module in model.named_modules() if module in (head, embeddings))
    if not any(name.startswith(places) for name in load_peft_weights(str(adapter), device="cpu")):
        return False
    untie(model)
    return True


def untie(model: Any) -> None:
    """Give the output head of a causal language model a copy of the weights it shares with the embeddings."""
    import torch

    head = model.get_output_embeddings()
    weight = head.weight
    head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
