"""Choose a model's quantization and dtype on a device: what `auto` means, always the same on the same machine.

Requested quantization or dtype, the model without weights (`skeleton`), a device -> the one to use. The choice does not
depend on currently free memory; otherwise a model could change each time it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from distill_lab.config import Dtype, Quantization
from distill_lab.device import Shape, fastest_dtype, total_memory

FULL_SHARE = 0.8
"""Fraction of GPU memory that the weights may take; the rest is for activations and the KV cache."""
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BYTES: dict[Quantization, float] = {"none": 2.0, "8bit": 1.0, "4bit": 0.55}
"""Bytes per quantized weight, including scales; other weights take 2."""
MIN_QUANTIZED = 0.5
"""Minimum fraction of the weights outside the embeddings that can be quantized; below it, quantization is rejected."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How many weights a model has, and how many of them bitsandbytes can quantize."""

    total: int
    embeddings: int
    """Input embeddings, plus the output head if it is a separate tensor; they are never quantized."""
    quantizable: int

    def bytes(self, quantization: Quantization) -> int:
        """Size of the weights in bytes; those not quantized take 2 bytes each."""
        return int(2 * (self.total - self.quantizable) + BYTES[quantization] * self.quantizable)

    @property
    def share(self) -> float:
        """Fraction of the weights outside the embeddings that can be quantized."""
        return self.quantizable / max(1, self.total - self.embeddings)


def count_weights(skeleton: PreTrainedModel) -> Weights:
    """Count a model's weights; experts stored in one tensor [experts, ., .] are not linear layers and are not quantized."""
    total = skeleton.num_parameters()
    embeddings = {id(weight): weight.numel() for weight in _embeddings(skeleton)}
    layers = {id(weight): weight.numel() for weight in _linear(skeleton)}
    return Weights(total, sum(embeddings.values()), sum(size for key, size in layers.items() if key not in embeddings))


def linear_shapes(skeleton: torch.nn.Module) -> list[Shape]:
    """Input and output features of every linear layer, and of one expert for every tensor of several experts."""
    shapes = [(weight.shape[1], weight.shape[0]) for weight in _linear(skeleton)]
    return shapes + [(weight.shape[2], weight.shape[1]) for weight in skeleton.parameters() if weight.dim() == 3]


def choose_dtype(wanted: Dtype, skeleton: PreTrainedModel, device: torch.device) -> Dtype:
    """The dtype to compute in. auto: bf16 or fp16 on a GPU, whichever it supports; on a CPU the faster for this model."""
    if wanted != "auto":
        return wanted
    dtype = fastest_dtype(linear_shapes(skeleton)) if device.type == "cpu" else compute_dtype(device)
    return next(name for name in ("fp32", "bf16", "fp16") if DTYPES[name] == dtype)


def compute_dtype(device: torch.device) -> torch.dtype:
    """A device's dtype for any model: fp32 on a CPU, bf16 on a GPU that supports it, else fp16 (T4, V100)."""
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def choose_quantization(wanted: Quantization, weights: Weights, device: torch.device) -> Quantization:
    """The quantization to use. auto: the first of none, 8bit and 4bit that fits the GPU; none without a GPU."""
    if wanted != "auto":
        return wanted
    return fitting_level(weights, total_memory(device)) if device.type == "cuda" else "none"


def fitting_level(weights: Weights, memory: float) -> Quantization:
    """The first of none, 8bit and 4bit that fits in `memory` bytes; none if hardly any weights can be quantized."""
    if weights.share < MIN_QUANTIZED:
        return "none"
    room = FULL_SHARE * memory
    for level in BYTES:
        if weights.bytes(level) <= room:
            return level
    return "4bit"


def is_spread(weights: Weights, quantization: Quantization, device: torch.device) -> bool:
    """Whether the layers must be spread over several GPUs."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        return False
    return weights.bytes(quantization) > FULL_SHARE * total_memory(device)


def _linear(skeleton: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The weights of the linear layers."""
    for layer in skeleton.modules():
        if isinstance(layer, (torch.nn.Linear, Conv1D)):
            yield layer.weight


def _embeddings(skeleton: PreTrainedModel) -> Iterator[torch.nn.Parameter]:
    for layer in (skeleton.get_input_embeddings(), skeleton.get_output_embeddings()):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.nn.Parameter):
            yield weight
