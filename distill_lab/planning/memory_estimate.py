"""Estimate the memory of training or generation: a model's shape and settings -> bytes by part.

    need = training_memory(shape_of(student), train, tokens=2048, quantization="none", compute="bf16")
    need.total, need.parts["activations"]

Loads and runs nothing: the formulas count the tensors that the lab's training and decoding keep in memory at once.
`benchmarks/memory.py` compares them with measured peaks. All figures are bytes; 1 GB is 1e9 bytes.

Symbols: H hidden size, Q heads x head size, K key-value heads x head size, I inner width of the MLP, V vocabulary,
T tokens of a micro-batch, b bytes per element of the compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill_lab.config import Quantization, TrainConfig
from distill_lab.device import MIN_WEIGHTS
from distill_lab.planning.model_shape import Shape

Compute = Literal["fp32", "bf16", "fp16"]
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
WEIGHT_BYTES = {"8bit": 1.0, "4bit": 0.516}
"""Bytes per quantized weight: NF4 has 4 bits, plus 8 bits per 64 weights and 32 per 16,384 (Dettmers et al. 2023, double
quantization). Embeddings, output head, norms and fused experts stay in 16 bits."""
STATE_BYTES = {"adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 0}
"""Bytes of optimizer state per trained weight; AdamW's two moments in fp32 take 8."""
CHUNK_ELEMENTS, MIN_CHUNK, MAX_CHUNK = 1 << 25, 64, 4096
"""Logits in memory at once, as in `objectives/_chunked_head.py`; a test checks that they are equal."""
PACKED_WIDTH = 1.5
"""Width of a bin in maximum row lengths; `packing.choose_width` takes 1 to 4, wide bins only if the typical row is short."""
MLP_TENSORS = {True: 4, False: 2}
"""Tensors of width I that an MLP keeps for its backward pass, with a gate (gate, activation, up, product) and without."""


@dataclass(frozen=True)
class Memory:
    """Peak memory in bytes."""

    parts: dict[str, float] = field(default_factory=dict)
    host: float = 0.0
    """With a GPU: peak host memory for loading or saving, including Python and torch."""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts.items() if size >= 5e6)


def gigabytes(size: float) -> str:
    """A number of bytes for people, such as 4.9 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def weight_bytes(shape: Shape, quantization: Quantization, compute: Compute) -> float:
    """Bytes of a frozen model: quantized linear layers, everything else in the compute dtype."""
    plain = BYTES[compute]
    if quantization in ("none", "auto"):
        return shape.num_parameters * plain
    return shape.num_linear * WEIGHT_BYTES[quantization] + (shape.num_parameters - shape.num_linear) * plain


def activation_bytes(shape: Shape, *, compute: Compute, full: bool, r: int = 0, width: int = 0) -> float:
    """Bytes per token that one layer keeps for its backward pass. full: all weights are trained, not adapters of rank r.

    width: tokens of the bin in which a row is packed with others; 0 if rows are not packed and need no mask.

    Counted on the lab's forward under autocast: a norm keeps its input in fp32 and, if its weight is trained, the
    normalized values; every linear layer keeps its own copy of its input in the compute dtype (in fp32, without
    conversion, layers with the same input share it); attention keeps queries, repeated keys and values, its output, and
    the mask in the compute dtype.
    """
    b, hidden, query, key_value = BYTES[compute], shape.hidden, shape.query, shape.key_value
    mixed = compute != "fp32"
    norm = shape.norms_per_layer * (hidden * 4 * (2 if full else 1) + 4)
    if shape.norms_per_layer > 2:  # norms after attention and MLP, whose inputs are converted to fp32
        norm += (shape.norms_per_layer - 2) * hidden * (b if full and mixed else 0)
    ups = 2 if shape.gated else 1
    inputs = (3 + ups if mixed else 2) * b * hidden
    attention = 4 * b * query + 4 * shape.heads + b * width
    if shape.normed_heads:
        attention += (4 + (b if mixed else 4) * full) * (query + key_value)
    mlp = MLP_TENSORS[shape.gated] * b * shape.mlp_width
    adapters = 0.0
    if not full:
        per_layer = sum(each.count for each in shape.linears) / shape.num_layers
        adapters = per_layer * r * b + (b * hidden if mixed else 0)
    if shape.experts_per_token:
        rows = shape.experts_per_token
        # Tokens gathered for their experts, and the results, in fp32 if the experts' weights are: autocast does not
        # convert grouped products. Frozen experts need neither the gathered tokens nor their products.
        wide = 4 if full else b
        inputs += rows * hidden * wide * (2 if full else 1)
        mlp = (MLP_TENSORS[True] - (not full)) * wide * shape.mlp_width + shape.num_experts * 8 + rows * 16
    return norm + inputs + attention + mlp + adapters


def training_memory(
    shape: Shape,
    train: TrainConfig,
    *,
    tokens: int | None = None,
    quantization: Quantization = "none",
    compute: Compute,
    shards: int = 1,
    in_place: bool | None = None,
    gpu: bool = True,
) -> Memory:
    """Peak memory of training with these settings, on one device.

    tokens: per micro-batch; None: as in `train`, or one row of `max_length` if that is longer. shards: number of processes
    that weights, gradients and optimizer states are split across (fsdp2). in_place: whether head and embeddings add to
    their gradients in place (one process, not fp16); None: decide by `compute` and `train.num_processes`.
    """
    tokens = max(train.tokens_per_batch, train.max_length) if tokens is None else tokens
    full, b = train.lora.r == 0, BYTES[compute]
    mixed = compute != "fp32"
    state = STATE_BYTES.get(train.optim, 8)
    if in_place is None:
        in_place = compute != "fp16" and train.num_processes == 1
    head = shape.untied_head or shape.embedding
    parts: dict[str, float] = {}
    if full:
        trained = shape.num_parameters
        parts["weights"] = 4 * trained / shards
        # The loss casts the head, and autocast every linear layer; both copies live until the backward pass ends.
        other = shape.num_parameters - shape.embedding - shape.untied_head
        parts["copies in 16 bits"] = b * (other + head) if mixed else 0
        parts["head's gradients"] = 0 if in_place else 4 * (shape.embedding + head)
    else:
        trained = shape.adapter_weights(train.lora.r, train.lora.targets)
        parts["weights"] = weight_bytes(shape, quantization, compute)
        parts["adapters"] = (4 + (b if mixed else 0)) * trained
        parts["unpacked layer"] = 0 if quantization == "none" else b * shape.largest_linear
    parts["gradients"] = 4 * trained / shards
    parts["optimizer"] = state * trained / shards
    width = min(tokens, round(PACKED_WIDTH * train.max_length))
    layer = activation_bytes(shape, compute=compute, full=full, r=train.lora.r, width=width) * tokens
    kept = 4 if full or not mixed else b
    if train.gradient_checkpointing:
        parts["activations"] = shape.num_layers * kept * shape.hidden * tokens + layer
    else:
        parts["activations"] = shape.num_layers * layer
    # Final norm, the trained positions' hidden states and their gradient.
    parts["activations"] += tokens * shape.hidden * (8 + 4 + 4)
    parts["mask"] = tokens * width
    parts["work"] = max(_loss_work(shape, tokens, b), _backward_work(shape, tokens, b, full=full))
    host = 4 * shape.num_parameters if full else max(2 * shape.largest_linear, 1e9)
    return Memory(parts, host=host if gpu else 0)


def _loss_work(shape: Shape, tokens: int, b: int) -> float:
    """Bytes of one chunk of logits: in the compute dtype, in fp32, and their gradient."""
    rows = min(max(CHUNK_ELEMENTS // shape.vocabulary, MIN_CHUNK), MAX_CHUNK, tokens)
    return rows * shape.vocabulary * ((4 + 2 * b if b < 4 else 4) + (8 if shape.softcap else 0))


def _backward_work(shape: Shape, tokens: int, b: int, *, full: bool) -> float:
    """Bytes for the gradients of one MLP's tensors, and of its largest matrix before accumulation."""
    return tokens * (3 * b * shape.mlp_width + 8 * shape.hidden) + ((b + 4) * shape.largest_linear if full else 0)


def generation_memory(
    shape: Shape,
    *,
    quantization: Quantization = "none",
    compute: Compute,
    rows: int = 1,
    prompt_tokens: int = 512,
    new_tokens: int = 512,
    sampled: bool = True,
    cpu: bool = False,
) -> Memory:
    """Memory for answering `rows` prompts at once: weights, keys and values, one pass over the prompts, logits.

    cpu: the output head is there twice, plain and packed (`models/packed_linear.py`).
    """
    b = BYTES[compute]
    tokens = rows * prompt_tokens
    widest = max(3 * shape.mlp_width, 2 * shape.query + 2 * shape.key_value)
    return Memory(
        {
            "weights": weight_bytes(shape, quantization, compute),
            "unpacked layer": 0 if quantization == "none" else b * shape.largest_linear,
            "packed head": b * shape.hidden * shape.vocabulary if cpu and shape.num_linear >= MIN_WEIGHTS else 0,
            "keys and values": rows * b * shape.kv_elements(prompt_tokens + new_tokens),
            "logits": rows * shape.vocabulary * (24 if sampled else 8),
            "prompts' pass": tokens * (b * widest + (4 + 2 * b) * shape.hidden),
        },
        host=max(2 * shape.largest_linear, 1e9),
    )
