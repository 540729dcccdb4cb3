"""Linear layers in the memory layout that this CPU multiplies fastest: a model in memory -> the same model, faster.

    pack_linears(model)     before generating on a CPU; returns how many layers were packed

A plain product rearranges the weights at every call. For the few rows of a generation step that takes most of the time.
oneDNN (which torch uses) can keep weights rearranged instead; the plain weights are given up for it, so memory stays the
same but for the output head, whose weights others read as well. Measured figures: benchmarks/RESULTS.md. Sums are added up
in another order, so the last bits differ from those of the plain product.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from distill_lab.device import MIN_WEIGHTS

DTYPES = (torch.float32, torch.bfloat16)
ROWS = (1, 16, 64)
"""Rows of the products that are timed: one answer, several decoded together, and a short prompt."""
PACKED_FOR = 16
"""Rows that oneDNN chooses the layout for; it is as fast for other numbers."""
MIN_GAIN = 1.1
"""Minimum speedup of packed over plain products to be used."""
NUM_ROUNDS, NUM_WEIGHTS, MAX_SIDE = 3, 3, 2048
"""Timed rounds; weights that take turns, so that none stays in the processor's caches; their maximum sides."""
TRIAL_TOKENS = 8
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Maximum difference of a packed product from the plain one, relative to its largest element."""


class PackedLinear(nn.Linear):
    """A linear layer for inference. Its `weight` is None, or the plain weight if `keep`; `num_weights` counts either.

    Until `pack()` it computes with the plain layer, so that a trial can find out whether somebody reads `weight`.
    """

    def __init__(self, plain: nn.Linear, *, keep: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_parameter("weight", plain.get_parameter("weight") if keep else None)
        self.register_parameter("bias", plain.bias if isinstance(plain.bias, nn.Parameter) else None)
        self.num_weights = plain.weight.numel()
        self._plain: tuple[nn.Linear, ...] = (plain,)
        self._packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Rearrange the weights, and give up the plain ones unless they are kept."""
        [plain] = self._plain
        self._packed = _packed(plain.weight)
        self._plain = ()

    @property
    def plain(self) -> nn.Linear:
        """The layer that it replaces; only before `pack()`."""
        return self._plain[0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self._packed is None:
            return self.plain(input)
        if not input.numel():
            return input.new_zeros((*input.shape[:-1], self.out_features))
        return _product(input, self._packed, self.bias)


@torch.inference_mode()
def pack_linears(model: PreTrainedModel, *, min_weights: int = MIN_WEIGHTS) -> int:
    """Pack the linear layers of a model in place; returns how many, 0 where nothing is gained.

    Only whole, frozen fp32 or bf16 weights on a CPU that are read by nobody but their layer, and only if packed products
    are correct and clearly faster here. Models with fewer than `min_weights` weights in linear layers are left alone:
    products are little of their time.
    """
    if not torch.backends.mkldnn.is_available() or model.training:
        return 0
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    found = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear and _fits(layer)]
    found = [(name, layer) for name, layer in found if layer is head or uses[id(layer.weight)] == 1]
    if sum(layer.weight.numel() for _, layer in found) < max(1, min_weights):
        return 0
    most = max(
        (layer.weight for _, layer in found if layer is not head), key=lambda weight: weight.numel(), default=None
    )
    if most is None or gain((most.shape[1], most.shape[0]), most.dtype) < MIN_GAIN:
        return 0
    replaced = {name: PackedLinear(layer, keep=layer is head) for name, layer in found}
    for name, layer in replaced.items():
        model.set_submodule(name, layer)
    if not _runs(model):
        for name, layer in replaced.items():
            model.set_submodule(name, layer.plain)
        return 0
    found.clear()
    for layer in replaced.values():
        layer.pack()
    return len(replaced)


def num_packed(model: nn.Module) -> int:
    """Weights of packed layers that are not among the model's parameters."""
    return sum(
        layer.num_weights for layer in model.modules() if isinstance(layer, PackedLinear) and layer.weight is None
    )


def gain(shape: tuple[int, int], dtype: torch.dtype, *, rows: tuple[int, ...] = ROWS) -> float:
    """Speedup of packed over plain products with weights of (inputs, outputs) on this CPU; 0 if it cannot or errs.

    rows: of ROWS, those whose time counts.
    """
    inputs, outputs = (min(side, MAX_SIDE) for side in shape)
    taken = _seconds(inputs, outputs, dtype, torch.get_num_threads())
    fast = sum(taken[number][1] for number in rows) if taken else 0.0
    return sum(taken[number][0] for number in rows) / fast if fast else 0.0


@cache
def _seconds(inputs: int, outputs: int, dtype: torch.dtype, num_threads: int) -> dict[int, tuple[float, float]]:
    """Rows -> seconds of plain and of packed products; empty if they differ. num_threads: only part of the cache key."""
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(outputs, inputs, generator=generator).to(dtype) for _ in range(NUM_WEIGHTS)]
    taken: dict[int, tuple[float, float]] = {}
    with torch.inference_mode():
        try:
            packed = [_packed(weight) for weight in plain]
            for num_rows in ROWS:
                hidden = torch.randn(num_rows, inputs, generator=generator).to(dtype)
                expected = nn.functional.linear(hidden, plain[0]).float()
                apart = (_product(hidden, packed[0], None).float() - expected).abs().max() / expected.abs().max()
                if not float(apart) <= TOLERANCE[dtype]:
                    return {}
                best = [float("inf")] * 2
                for turn in range(1 + NUM_ROUNDS):
                    start = time.process_time()
                    for weight in plain:
                        nn.functional.linear(hidden, weight)
                    middle = time.process_time()
                    for weight in packed:
                        _product(hidden, weight, None)
                    if turn:  # the first round sets up kernels
                        best = [min(best[0], middle - start), min(best[1], time.process_time() - middle)]
                taken[num_rows] = best[0], best[1]
        except (RuntimeError, NotImplementedError, AttributeError):
            return {}  # a torch without oneDNN, or a processor that it has no kernels for
    return taken


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)


def _product(hidden: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        weight.device.type == "cpu" and weight.dtype in DTYPES and not weight.requires_grad and weight.is_contiguous()
    )


def _runs(model: PreTrainedModel) -> bool:
    """Whether the model computes without the weights that packed layers hide; some models read a layer's weight."""
    ids_1T = torch.arange(TRIAL_TOKENS)[None] % model.config.get_text_config().vocab_size
    try:
        model(input_ids=ids_1T, use_cache=False)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True
