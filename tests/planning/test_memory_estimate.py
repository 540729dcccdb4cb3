"""The memory estimator: counted tensors of tiny models of several architectures, and published sizes of real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.planning.memory_estimate import (
    CHUNK_ELEMENTS,
    MAX_CHUNK,
    MIN_CHUNK,
    activation_bytes,
    generation_memory,
    training_memory,
    weight_bytes,
)
from distill_lab.planning.model_shape import measure, shape_of
from distill_lab.train import loss_module
from distill_lab.train.lora import add_adapters
from distill_lab.train.objectives import LossBatch, _chunked_head, load_objective

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 64},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16},
    "llama": {"tie_word_embeddings": False},
    "qwen3_moe": {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
}
TOKENS = 1024


def config_of(kind: str, layers: int, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES[kind], **more, "num_hidden_layers": layers})


def saved_bytes(model: Any, *, mixed: bool) -> int:
    """Bytes that the lab's forward keeps for the backward pass, weights and buffers excepted, shared tensors once."""
    loss_module.install(model, load_objective("cross_entropy"))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed tensor's address would be used again
        return tensor

    ids = torch.arange(TOKENS)[None] % SIZES["vocab_size"]
    positions = torch.arange(TOKENS // 2).repeat(2)[None]  # two rows packed: the mask is part of it
    trained = torch.arange(TOKENS // 2)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, mixed),
    ):
        model(LossBatch(ids, positions, None, None, trained, ids[0, trained], ()))
    return sum(held.values())


@pytest.mark.parametrize("r", [0, 8], ids=["full", "lora"])
@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_activations_are_what_the_forward_keeps(kind: str, mixed: bool, r: int) -> None:
    kept = []
    for layers in (2, 4):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config_of(kind, layers))
        if r:
            model = model.to(torch.bfloat16) if mixed else model
            targets = ("q_proj", "k_proj", "v_proj", "o_proj") if "moe" in kind else ("all-linear",)
            model = add_adapters(model.requires_grad_(False), LoraConfig(r=r, targets=targets), name="x", seed=0)
        kept.append(saved_bytes(model.train(), mixed=mixed))
    shape = measure(config_of(kind, 2), name=kind)
    # Autocast's copies of trained weights are counted elsewhere.
    copied = 0
    if mixed:
        body = shape.num_parameters - shape.embedding - shape.untied_head
        copied = 2 * (shape.adapter_weights(r) if r else body) / shape.num_layers
    measured = ((kept[1] - kept[0]) / 2 - copied) / TOKENS
    estimate = activation_bytes(shape, compute="bf16" if mixed else "fp32", full=not r, r=r, width=TOKENS)
    assert estimate == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    ("name", "kilobytes"), [("Qwen2.5-0.5B", 70), ("Qwen3-0.6B", 87), ("Qwen2.5-1.5B", 125), ("Qwen3-1.7B", 138)]
)
def test_activations_of_real_sizes(name: str, kilobytes: float) -> None:
    shape = shape_of(ModelConfig(model=f"Qwen/{name}"))
    assert activation_bytes(shape, compute="fp16", full=True) == pytest.approx(1e3 * kilobytes, rel=0.03)


@pytest.mark.parametrize(
    ("name", "states", "copies", "activations", "total"),
    [
        ("Qwen2.5-0.5B", 7.9, 2.1, 3.4, 13.4),
        ("Qwen3-0.6B", 9.5, 2.5, 5.0, 16.9),
        ("Qwen2.5-1.5B", 24.7, 4.9, 7.1, 36.8),
        ("Qwen3-1.7B", 27.5, 5.9, 7.9, 41.4),
    ],
)
def test_a_full_fine_tune_in_fp16_at_2048_tokens(
    name: str, states: float, copies: float, activations: float, total: float
) -> None:
    # Counted by hand for one row to a bin: no mask.
    train = TrainConfig(max_length=8, tokens_per_batch=2048)
    need = training_memory(shape_of(ModelConfig(model=f"Qwen/{name}")), train, tokens=2048, compute="fp16")
    parts = {part: size / 1e9 for part, size in need.parts.items()}
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == pytest.approx(states, rel=0.02)
    assert parts["copies in 16 bits"] + parts["head's gradients"] == pytest.approx(copies, rel=0.05)
    assert parts["activations"] == pytest.approx(activations, rel=0.05)
    assert need.total / 1e9 == pytest.approx(total, rel=0.05)


def test_what_checkpointing_8_bit_states_and_adapters_save() -> None:
    shape, train = shape_of(ModelConfig(model="Qwen/Qwen2.5-1.5B")), TrainConfig(max_length=1024)
    plain = training_memory(shape, train, tokens=8192, compute="bf16")
    kept = training_memory(
        shape, train.model_copy(update={"gradient_checkpointing": True}), tokens=8192, compute="bf16"
    )
    # The layers' inputs in fp32, 1.4 GB, and one layer that is computed again.
    one_layer = plain.parts["activations"] / shape.num_layers
    assert kept.parts["activations"] / 1e9 == pytest.approx(1.41 + one_layer / 1e9, abs=0.25)
    eight = training_memory(shape, train.model_copy(update={"optim": "adamw_8bit"}), tokens=8192, compute="bf16")
    assert (plain.total - eight.total) / 1e9 == pytest.approx(6 * 1.544, rel=0.01)
    lora = train.model_copy(update={"lora": LoraConfig(r=16)})
    adapters = training_memory(shape, lora, tokens=8192, compute="bf16", quantization="4bit")
    assert adapters.parts["optimizer"] == 8 * shape.adapter_weights(16)
    assert adapters.parts["weights"] / 1e9 == pytest.approx(0.516 * 1.31 + 2 * 0.2335, rel=0.02)


@pytest.mark.parametrize(
    ("name", "quantization", "gigabytes"),
    [
        ("Qwen2.5-7B-Instruct", "none", 15.2),
        ("Qwen2.5-7B-Instruct", "8bit", 8.7),
        ("Qwen3-8B", "8bit", 9.4),
        ("Qwen2.5-14B-Instruct", "8bit", 16.3),
        ("Qwen3-30B-A3B-Instruct-2507", "none", 61.1),
        ("Qwen3-30B-A3B-Instruct-2507", "4bit", 59.7),  # its experts are no linear layers and stay as they are
    ],
)
def test_weights_of_teachers(name: str, quantization: Any, gigabytes: float) -> None:
    shape = shape_of(ModelConfig(model=f"Qwen/{name}"))
    assert weight_bytes(shape, quantization, "bf16") / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_keys_and_values_end_at_the_window() -> None:
    shape = measure(config_of("gemma3_text", 6), name="gemma")
    full, windowed = sum(w == 0 for w in shape.windows), sum(w == 16 for w in shape.windows)
    assert full + windowed == 6
    assert windowed
    assert shape.kv_elements(100) == 2 * shape.key_value * (100 * full + 16 * windowed)
    need = generation_memory(shape, compute="fp32", rows=3, prompt_tokens=60, new_tokens=40)
    assert need.parts["keys and values"] == 3 * 4 * shape.kv_elements(100)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_shapes_count_every_weight(kind: str) -> None:
    config = config_of(kind, 2)
    shape, model = measure(config, name=kind), AutoModelForCausalLM.from_config(config)
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.untied_head == (0 if kind == "gemma3_text" else 512 * 128 if not config.tie_word_embeddings else 0)
    linear = [
        layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    ]
    assert shape.num_linear == sum(layer.weight.numel() for layer in linear)
    assert shape.adapter_weights(4) == 4 * sum(layer.in_features + layer.out_features for layer in linear)


def test_the_loss_is_counted_with_its_own_chunks() -> None:
    assert (_chunked_head.CHUNK_ELEMENTS, _chunked_head.MIN_CHUNK, _chunked_head.MAX_CHUNK) == (
        CHUNK_ELEMENTS,
        MIN_CHUNK,
        MAX_CHUNK,
    )


def test_a_directory_has_the_shape_of_its_config(random_model: Callable[..., Path]) -> None:
    shape = shape_of(ModelConfig(model=str(random_model(hidden=64, layers=3))))
    assert (shape.num_layers, shape.hidden, shape.query, shape.key_value) == (3, 64, 32, 16)
    assert shape.normed_heads
