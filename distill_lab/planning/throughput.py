"""How fast this machine reads, generates and trains: a model's shape -> seconds per token, by timing its products.

    speed = measure_throughput(shape_of(student), compute="bf16", budget_s=3)
    speed.read_s(1000), speed.decode_s(200, rows=16), speed.train_s(1000, adapters=True, checkpointing=False)

Times one matrix product of each kind of layer, on the device the lab would use, and adds them up over the layers. No weights
are loaded. The rest of a step (attention, norms, the optimizer, Python) is a share on top, taken from
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distill_lab.planning.memory_estimate import WEIGHT_BYTES, Compute
from distill_lab.planning.model_shape import Shape

if TYPE_CHECKING:
    import torch

READ_TOKENS = 256
"""Rows of the products that reading and training are timed with."""
DECODE_ROWS = (1, 16, 64)
"""Numbers of answers generated at once that are timed; others are interpolated."""
MAX_SIDE = 16_384
"""Largest side of a timed matrix; the time of a larger one follows from its size."""
CACHE_BYTES = 192e6
"""A step reads each weight once, so timed weights change until they exceed the processor's caches."""
REST_OF_STEP = {"read": 1.25, "decode": 1.3, "train": 1.3}
"""Time of a whole step over that of its products. Training: 1.24 to 1.33 (benchmarks/RESULTS.md, benchmarks.sft)."""
LAYER_S = {"cpu": 2.5e-4, "cuda": 2.5e-4, "mps": 4e-4}
"""Seconds of Python and kernel launches per layer and generated token, whatever the layer's size."""
THREAD_GAIN = 0.85
"""What each further thread adds to the speed of one: threads share the memory."""
MIN_TIMES, MAX_TIMES = 2, 8


@dataclass(frozen=True)
class Throughput:
    """Seconds of one model's products on this machine."""

    read_token_s: float
    """Per token of a prompt."""
    step_s: dict[int, float] = field(default_factory=dict)
    """Per generated token of a whole batch, by the number of answers in it."""
    layers_s: float = 0.0
    """Per step, for the layers' overhead."""

    def read_s(self, tokens: float) -> float:
        """Seconds to read prompts with `tokens` tokens in total."""
        return tokens * self.read_token_s * REST_OF_STEP["read"]

    def decode_s(self, tokens: float, *, rows: float) -> float:
        """Seconds to generate `tokens` tokens in total, `rows` answers at once."""
        rows = max(1.0, rows)
        return tokens / rows * (self._step(rows) * REST_OF_STEP["decode"] + self.layers_s)

    def train_s(self, tokens: float, *, adapters: bool, checkpointing: bool) -> float:
        """Seconds to train on `tokens` tokens: two more products per weight than reading, one more with adapters."""
        passes = (2 if adapters else 3) + checkpointing
        return tokens * passes * self.read_token_s * REST_OF_STEP["train"]

    def _step(self, rows: float) -> float:
        known = sorted(self.step_s)
        below = max((each for each in known if each <= rows), default=known[0])
        above = min((each for each in known if each >= rows), default=known[-1])
        if rows > known[-1]:  # beyond what is timed, time grows with the rows
            return self.step_s[known[-1]] * rows / known[-1]
        if below == above:
            return self.step_s[below]
        share = (rows - below) / (above - below)
        return self.step_s[below] + share * (self.step_s[above] - self.step_s[below])


def measure_throughput(
    shape: Shape, *, compute: Compute, quantization: str = "none", budget_s: float = 3.0
) -> Throughput:
    """The throughput of a model of this shape here. budget_s: about the seconds that timing may take.

    Quantized weights are read faster, and unpacked for longer passes: a step is scaled by their size, reading is not.
    """
    import torch

    from distill_lab.device import best_device

    device = best_device()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute]
    products = [((each.inputs, each.outputs), each.count) for each in shape.linears]
    # A mixture of experts keeps its experts in fused weights, which are not linear layers: the width per token counts.
    if shape.experts_per_token:
        products += [
            ((shape.hidden, 2 * shape.mlp_width), shape.num_layers),
            ((shape.mlp_width, shape.hidden), shape.num_layers),
        ]
    head = (shape.hidden, shape.vocabulary)
    share = budget_s / ((len(products) + 1) * (1 + len(DECODE_ROWS)))
    steps: dict[int, float] = {}
    with torch.inference_mode(), _one_thread(device) as threads:
        read = sum(count * _product_s(sides, READ_TOKENS, dtype, device, share) for sides, count in products)
        head_read = _product_s(head, READ_TOKENS, dtype, device, share)
        for rows in DECODE_ROWS:
            step = sum(
                count
                * _product_s(sides, rows, dtype, device, share)
                / _gain_of_packing(shape, sides, rows, dtype, device)
                for sides, count in [*products, (head, 1)]
            )
            steps[rows] = step * _packed(quantization, compute) / threads
    return Throughput((read + head_read) / READ_TOKENS / threads, steps, LAYER_S[device.type] * shape.num_layers)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[float]:
    """Time on one thread of a CPU, whose processor time does not count other programs; yields the gain of all threads."""
    import torch

    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield 1.0
        return
    torch.set_num_threads(1)
    try:
        yield 1 + THREAD_GAIN * (threads - 1)
    finally:
        torch.set_num_threads(threads)


def _packed(quantization: str, compute: Compute) -> float:
    """Time of a generation step with quantized weights, relative to plain ones: less is read, but it is unpacked."""
    if quantization not in WEIGHT_BYTES:
        return 1.0
    return max(0.5, WEIGHT_BYTES[quantization] / (4 if compute == "fp32" else 2))


def _gain_of_packing(
    shape: Shape, sides: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device
) -> float:
    """How many times as fast an answering model's products are on a CPU, where its layers are packed."""
    from distill_lab.device import MIN_WEIGHTS
    from distill_lab.models import packed_linear

    if (
        device.type != "cpu"
        or shape.num_linear < MIN_WEIGHTS
        or packed_linear.gain(sides, dtype) < packed_linear.MIN_GAIN
    ):
        return 1.0
    return packed_linear.gain(sides, dtype, rows=(rows,))


def _product_s(sides: tuple[int, int], rows: int, dtype: torch.dtype, device: torch.device, budget_s: float) -> float:
    """Median seconds of `rows` x inputs times inputs x outputs (`sides`), each time with other weights."""
    import torch

    inputs, outputs = (min(side, MAX_SIDE) for side in sides)
    scale = sides[0] * sides[1] / (inputs * outputs)
    size = inputs * outputs * dtype.itemsize
    copies = max(1, min(MAX_TIMES, round(CACHE_BYTES / size))) if rows < READ_TOKENS else 1
    # Zeros would be shared pages that are never read from memory.
    weights = [torch.full((outputs, inputs), 0.5, dtype=dtype, device=device) for _ in range(copies)]
    hidden = torch.full((rows, inputs), 0.5, dtype=dtype, device=device)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    seconds: list[float] = []
    begin = clock()
    for turn in range(1 + MAX_TIMES):
        start = clock()
        torch.nn.functional.linear(hidden, weights[turn % copies])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:  # the first one sets up kernels
            seconds.append(clock() - start)
        if len(seconds) >= MIN_TIMES and clock() - begin > budget_s:
            break
    return sorted(seconds)[len(seconds) // 2] * scale
