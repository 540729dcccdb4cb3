"""Adapters merged into weights that may be quantized, a layer at a time: a model with adapters -> a plain model's files.

    write_merged(adapted, Path("student"), dtype=torch.float16)

Merging in memory would unpack the whole model beside itself: a 7B has 15 GB in 16 bits, more than a T4 or its host has.
Here one layer at a time is unpacked, gets what its adapters add, and goes to the file; what is not written yet is at most
one file of SHARD_BYTES. The result is what `PeftModel.merge_and_unload` computes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from distill_lab.train.loss_module import causal_model

SHARD_BYTES = 1 << 30
"""Maximum bytes of weights that wait in host memory until they are a file."""
INDEX = "model.safetensors.index.json"


def can_write_merged(model: PeftModel) -> bool:
    """Whether a model's weights are stored under the names they have in memory, and its adapters are all on linear layers.

    Others (mixtures of experts, whose tensors are put together while they are loaded) are merged in memory.
    """
    adapted = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    plain = all(type(layer).__name__ in ("Linear", "Linear4bit", "Linear8bitLt") for layer in adapted)
    return plain and not getattr(causal_model(model), "_weight_conversions", None)


@torch.no_grad()
def write_merged(model: PeftModel, out: Path, *, dtype: torch.dtype) -> None:
    """Write config and weights of the plain model that computes what `model` does to the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    base = causal_model(model)
    shard: dict[str, torch.Tensor] = {}
    files: list[Path] = []
    names: dict[str, int] = {}
    total = 0
    for name, weight in _plain_weights(base):
        shard[name] = weight.to(device="cpu", dtype=dtype if weight.is_floating_point() else weight.dtype).contiguous()
        names[name] = len(files)
        total += shard[name].nbytes
        if sum(each.nbytes for each in shard.values()) >= SHARD_BYTES:
            files.append(_write(shard, out, len(files)))
            shard = {}
    if shard:
        files.append(_write(shard, out, len(files)))
    final = [_final_name(number, len(files)) for number in range(len(files))]
    for path, to in zip(files, final, strict=True):
        path.rename(out / to)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: final[number] for name, number in names.items()},
        }
        (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    config.dtype = dtype
    config.architectures = [type(base).__name__]
    config.save_pretrained(out)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(out)


def _plain_weights(base: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of every weight of the merged model, one at a time; tied weights under their first name alone."""
    tied = set(getattr(base, "all_tied_weights_keys", None) or {})
    for path, module in base.named_modules():
        # What belongs to adapters is part of the layer that they are on.
        parts = path.split(".")
        if any(part.startswith("lora_") for part in parts):
            continue
        if isinstance(module, LoraLayer):
            for name, value in _merged_layer(module):
                yield f"{path}.{name}", value
            continue
        if "base_layer" in parts:
            continue
        for name, value in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if full not in tied:
                yield full, _unpacked(module) if name == "weight" else value
        for name, value in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, value


def _merged_layer(layer: LoraLayer) -> Iterator[tuple[str, torch.Tensor]]:
    weight, bias = _unpacked(layer.base_layer), layer.base_layer.bias
    delta = getattr(layer, "get_delta_weight")  # noqa: B009 - of peft's linear layers, not of all its layers
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight = weight + delta(adapter).to(weight.dtype)
    yield "weight", weight
    if isinstance(bias, torch.Tensor):
        yield "bias", bias


def _unpacked(module: nn.Module) -> torch.Tensor:
    """A layer's weight as a plain tensor."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    if weight.is_floating_point():
        return weight
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    state = getattr(module, "state", None)
    return dequantize_bnb_weight(weight, state)


def _write(shard: dict[str, torch.Tensor], out: Path, number: int) -> Path:
    path = out / f".shard-{number}.safetensors"
    save_file(shard, path, metadata={"format": "pt"})
    return path


def _final_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
