"""Which layers of a student get adapters: the names a user gave -> what peft is to look for.

In a mixture of experts the experts and their router are left alone. Adapters on a router change which experts compute, and
adapters on every one of 128 experts are more weights than a dense model has; attention is what all tokens share (Schulman et
al. 2025, LoRA Without Regret, divides the rank by the number of active experts where it trains experts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from distill_lab.errors import UserError

ALL = "all-linear"
"""Every linear layer but the output head, and but the experts and their router in a mixture of experts."""


def adapter_targets(model: PreTrainedModel, targets: Sequence[str], *, name: str) -> str | list[str]:
    """`target_modules` of peft for the layers that `targets` name, or ALL.

    name: of the model, for messages. Raises UserError for a name that no linear layer has, and for experts and routers.
    """
    linear = {path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    output = model.get_output_embeddings()
    heads = {_last(path) for path, layer in model.named_modules() if layer is output}
    mixtures = set(_mixtures(model))
    known = {_last(path) for path in linear if not mixtures.intersection(path.split("."))} - heads
    if heads.intersection(targets):
        raise UserError(
            f"lora.targets: {', '.join(heads)} is the output head of {name}; the loss is computed from the head's own "
            "weights a part of the vocabulary at a time, so adapters on it would not be trained. Leave it out of "
            "--train.lora.targets"
        )
    unknown = [target for target in targets if target not in known and target != ALL]
    if unknown:
        what, but = "no linear layer", ""
        if mixtures:
            what, but = "no linear layer outside of its experts and their router,", ", which adapters leave as they are"
        raise UserError(
            f"lora.targets: {name} has {what} {', '.join(unknown)}{but}; it has {', '.join(sorted(known))} (or {ALL})"
        )
    if ALL not in targets:
        return list(targets)
    return sorted(known) if mixtures else ALL


def _mixtures(model: nn.Module) -> Iterator[str]:
    """Names, as in model.layers.3.NAME, of the modules that hold experts beside their router; none in a dense model."""
    for path, module in model.named_modules():
        parent, _, last = path.rpartition(".")
        fused = any(weight.dim() == 3 for weight in module.parameters(recurse=False))
        if "expert" in f"{last} {type(module).__name__}".lower() and (fused or isinstance(module, nn.ModuleList)):
            yield _last(parent)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
