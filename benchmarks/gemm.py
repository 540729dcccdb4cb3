"""The matrix multiplications of a training step and nothing else: shapes of a Qwen -> seconds.

    python -m benchmarks.gemm --hidden 896 --layers 4 --tokens 1765 --trained 1000 [--lora-rank 16]

A floor for the time of a step: no attention, norm, activation, softmax, optimizer or copy, all operands in place. Full
fine-tune: forward, input gradient and weight gradient of every linear layer over all row tokens, and of the head over the
trained tokens alone. LoRA: forward and input gradient of the frozen weights, and the adapters' six small products.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

import torch

HEAD_CHUNK = 1024
"""Positions of the head multiplied at once, so that the logits of all need not be held."""


@dataclass(frozen=True)
class Shapes:
    """What decides how much a step multiplies."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: int
    """Row tokens of a step, padding not counted."""
    trained: int
    """Positions the head projects."""
    lora_rank: int = 0
    """0: full fine-tune."""

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of one layer's q, k, v, o, gate, up and down."""
        key = self.hidden // self.heads * self.kv_heads
        attention = [(self.hidden, self.hidden), (self.hidden, key), (self.hidden, key), (self.hidden, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]

    def flops(self) -> int:
        """Multiplications and additions of a step."""
        passes = 2 if self.lora_rank else 3
        layer = sum(inputs * outputs for inputs, outputs in self.linears()) * passes
        layer += sum(3 * self.lora_rank * (inputs + outputs) for inputs, outputs in self.linears())
        return 2 * (self.layers * layer * self.tokens + passes * self.hidden * self.vocabulary * self.trained)


def step_seconds(shapes: Shapes, *, steps: int, device: torch.device, dtype: torch.dtype) -> list[float]:
    """Seconds of `steps` steps' multiplications, one by one, after a warm-up over one layer."""
    products = [
        product
        for inputs, outputs in shapes.linears()
        for product in _products(shapes.tokens, inputs, outputs, shapes.lora_rank, device, dtype)
    ]
    head = {
        size: _products(size, shapes.hidden, shapes.vocabulary, 0, device, dtype, frozen=bool(shapes.lora_rank))
        for size in {min(HEAD_CHUNK, shapes.trained - start) for start in range(0, shapes.trained, HEAD_CHUNK)}
    }
    chunks = [
        product
        for start in range(0, shapes.trained, HEAD_CHUNK)
        for product in head[min(HEAD_CHUNK, shapes.trained - start)]
    ]

    def run(layers: int) -> float:
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(layers):
            for left, right, out in products:
                torch.matmul(left, right, out=out)
        for left, right, out in chunks:
            torch.matmul(left, right, out=out)
        _synchronize(device)
        return time.perf_counter() - start

    run(1)
    return [run(shapes.layers) for _ in range(steps)]


Product = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _products(
    tokens: int,
    inputs: int,
    outputs: int,
    rank: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    frozen: bool = False,
) -> list[Product]:
    """The products of one linear layer, operands and results ready: forward, input gradient, weight gradient."""

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.float32).to(dtype)

    x_TI, grad_TO, weight_OI = tensor(tokens, inputs), tensor(tokens, outputs), tensor(outputs, inputs)
    y_TO, grad_TI = tensor(tokens, outputs), tensor(tokens, inputs)
    products = [(x_TI, weight_OI.T, y_TO), (grad_TO, weight_OI, grad_TI)]
    if rank:
        a_RI, b_OR, x_TR, grad_TR = (
            tensor(rank, inputs),
            tensor(outputs, rank),
            tensor(tokens, rank),
            tensor(tokens, rank),
        )
        products += [(x_TI, a_RI.T, x_TR), (x_TR, b_OR.T, y_TO), (grad_TO, b_OR, grad_TR), (grad_TR, a_RI, grad_TI)]
        products += [(grad_TO.T, x_TR, torch.empty_like(b_OR)), (grad_TR.T, x_TI, torch.empty_like(a_RI))]
    elif not frozen:
        products.append((grad_TO.T, x_TI, torch.empty_like(weight_OI)))
    return products


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Time one shape and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=896, help="a multiple of 64 (default 896, Qwen2.5-0.5B)")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=1765, help="row tokens of a step")
    parser.add_argument("--trained", type=int, default=1000, help="positions the head projects")
    parser.add_argument("--lora-rank", type=int, default=0, help="0: full fine-tune (default)")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    hidden = arguments.hidden
    shapes = Shapes(
        hidden=hidden,
        intermediate=hidden * 38 // 7,
        layers=arguments.layers,
        heads=hidden // 64,
        kv_heads=max(1, hidden // 448),
        vocabulary=151_936,
        tokens=arguments.tokens,
        trained=arguments.trained,
        lora_rank=arguments.lora_rank,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seconds = step_seconds(shapes, steps=arguments.steps, device=device, dtype=dtype)
    rate = shapes.flops() / min(seconds) / 1e9
    print(json.dumps({"seconds": [round(each, 3) for each in seconds], "gflops_per_s": round(rate, 1)}))


if __name__ == "__main__":
    main()
