"""Training in bf16 on a CPU: gradients against those of fp32, weights that stay in fp32, and what holds in either dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.tiny import FAMILY
from distill_lab.train import plan
from distill_lab.train.bf16_layers import linear, rms_norm, swiglu
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.loss_module import add_embedding_gradients_in_place, install
from distill_lab.train.packing import collate
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_student
from tests.helpers import CROSS_ENTROPY, IN_THREE_PARTS, limited, step_gradients, toy_rows, train_and_kill, train_with

pytestmark = pytest.mark.slow

BF16 = TrainConfig(
    learning_rate=5e-3,
    tokens_per_batch=128,
    num_epochs=3,
    logging_steps=1,
    validation_fraction=0.1,
    dtype="bf16",
    gradient_accumulation_steps=2,
)


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(model=str(random_model(hidden=32, layers=2)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows())
    return path


def similarity(left: torch.Tensor, right: torch.Tensor) -> float:
    return F.cosine_similarity(left.flatten().double(), right.flatten().double(), 0).item()


def losses(logs: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in logs if "loss" in row]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_layer_and_its_gradients_equal_torchs_in_fp32(dtype: torch.dtype) -> None:
    """Inputs in bf16 and in fp32, slices that end before the tensor does, and inputs that are left as they were."""
    left, right, grad = (torch.randn(3, 700, 300, generator=generator()).to(dtype) for _ in range(3))
    right = right.flip(1)
    weight_H, epsilon = torch.randn(300, generator=generator()).requires_grad_(), 1e-6
    before = left.clone()
    left.requires_grad_()
    right.requires_grad_()

    def plain_norm(hidden: torch.Tensor) -> torch.Tensor:
        return weight_H * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)

    for ours, plain, inputs in (
        (swiglu(left, right), F.silu(left.float()) * right.float(), (left, right)),
        (rms_norm(left, weight_H, epsilon), plain_norm(left.float()), (left, weight_H)),
    ):
        torch.testing.assert_close(ours.float(), plain, rtol=1e-2, atol=1e-2)
        found = torch.autograd.grad(ours, inputs, grad.to(ours.dtype))
        for gradient, wanted in zip(found, torch.autograd.grad(plain, inputs, grad.float()), strict=True):
            assert gradient.dtype == wanted.dtype
            assert similarity(gradient, wanted) > 0.99995
            assert gradient.norm().item() == pytest.approx(wanted.norm().item(), rel=1e-3)
    assert torch.equal(left, before)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_linear_layers_gradients_are_those_of_fp32(in_place: bool) -> None:
    hidden = torch.randn(2, 50, 64, generator=generator()).requires_grad_()
    weight_OI, bias_O = (torch.randn(*shape, generator=generator()).requires_grad_() for shape in ((96, 64), (96,)))
    grad = torch.randn(2, 50, 96, generator=generator())
    wanted = torch.autograd.grad(F.linear(hidden, weight_OI, bias_O), (hidden, weight_OI, bias_O), grad)
    for times in (1, 2):
        output = linear(hidden, weight_OI, bias_O, weight_OI.detach().bfloat16(), in_place=in_place)
        output.backward(grad.bfloat16())
        for weight, gradient in zip((hidden, weight_OI, bias_O), wanted, strict=True):
            assert weight.grad is not None
            assert weight.grad.dtype == torch.float32
            assert similarity(weight.grad, gradient) > 0.9999
            assert weight.grad.norm().item() == pytest.approx(times * gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_steps_gradients_are_those_of_fp32(
    any_head: ModelConfig, rows: Path, tmp_path: Path, checkpointing: bool
) -> None:
    """Tied, untied, scaled and soft-capped heads, several micro-batches, activations kept and recomputed."""
    config = TrainConfig(tokens_per_batch=300, gradient_accumulation_steps=64, dtype="fp32")
    exact = step_gradients(any_head, rows, tmp_path / "fp32", config)
    settings = {"dtype": "bf16", "gradient_checkpointing": checkpointing}
    found = step_gradients(any_head, rows, tmp_path / "bf16", config.model_copy(update=settings))
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert found[name].dtype == torch.float32
        assert similarity(found[name], gradient) > 0.99, name
    whole, right = (torch.cat([each[name].flatten() for name in exact]) for each in (found, exact))
    assert similarity(whole, right) > 0.999
    assert whole.norm().item() == pytest.approx(right.norm().item(), rel=0.01)


def test_packed_rows_do_not_see_each_other(student: ModelConfig, rows: Path) -> None:
    model, tokenizer = load_model(student, training=True)
    data = read_rows(rows, tokenizer, max_length=512, validation_fraction=0, seed=0).training[:6]
    passes = Bf16Passes(model, in_place=True)
    assert passes.rows
    install(model, CROSS_ENTROPY, head_copy=passes.head_copy)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        together = model(collate([data[:4], data[4:]], flat=True)).total.item()
        apart = sum(model(collate([[row]], flat=True)).total.item() for row in data)
    assert together == pytest.approx(apart, rel=1e-3)


def test_a_model_with_a_window_keeps_its_own_attention(random_model: Callable[..., Path], rows: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "layer_types": None}
    model, tokenizer = load_model(ModelConfig(model=str(random_model(hidden=32, layers=2, **window))), training=True)
    data = read_rows(rows, tokenizer, max_length=512, validation_fraction=0, seed=0).training[:4]
    install(model, CROSS_ENTROPY)
    exact = model(collate([data])).total.item()
    passes = Bf16Passes(model, in_place=True)
    assert not passes.rows
    install(model, CROSS_ENTROPY, head_copy=passes.head_copy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(collate([data])).total.item() == pytest.approx(exact, rel=0.01)


def test_updates_below_bf16s_resolution_add_up(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    """Steps of a millionth: bf16 resolves a 256th of a weight, so weights held in it would not move at all."""
    settings = {"learning_rate": 1e-6, "weight_decay": 0.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    settings |= {"max_steps": 4}
    result = train_student(student, rows, tmp_path / "student", BF16.model_copy(update=settings))
    name = "model.layers.0.mlp.down_proj.weight"
    folders = Path(student.model), tmp_path / "student"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in folders)
    assert after.dtype == torch.float32
    moved = (after - before).abs()
    assert (moved > 0).float().mean() > 0.99
    assert 2e-6 < moved.max().item() < 2e-6 * result.steps
    held = before.bfloat16()
    assert (held + 1e-6 == held).float().mean() > 0.9


def test_losses_follow_those_of_fp32(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}
    for dtype in ("fp32", "bf16"):
        logs: list[dict[str, Any]] = []
        config = BF16.model_copy(update={"dtype": dtype})
        result = train_student(student, rows, tmp_path / dtype, config, on_log=logs.append)
        found[dtype] = losses(logs)
        assert result.validation_loss_before is not None
        assert result.validation_loss_after is not None
        assert result.validation_loss_after < 0.6 * result.validation_loss_before
    assert found["bf16"] != found["fp32"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)


def test_the_head_is_refreshed_after_every_step(student: ModelConfig) -> None:
    model, _ = load_model(student, training=True)
    passes = Bf16Passes(model, in_place=True)
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        head.weight += 1
        model.model.layers[0].mlp.up_proj.weight += 1
    assert not torch.equal(passes.head_copy, head.weight.bfloat16())
    passes.refresh()
    assert torch.equal(passes.head_copy, head.weight.bfloat16())
    hidden = torch.randn(1, 3, 32)
    projection = model.model.layers[0].mlp.up_proj
    torch.testing.assert_close(projection(hidden).float(), F.linear(hidden, projection.weight), rtol=0.05, atol=0.1)
    passes.remove()
    assert torch.equal(projection(hidden), F.linear(hidden, projection.weight))


def test_killed_and_resumed_gives_the_same_weights(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    config = BF16.model_copy(update={"save_steps": 3})
    train_student(student, rows, tmp_path / "whole", config)
    train_and_kill(student, rows, tmp_path / "killed", config, step=5)
    assert train_student(student, rows, tmp_path / "killed", config).resumed_from == 3
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_two_processes_train_as_one(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    one: list[dict[str, Any]] = []
    two: list[dict[str, Any]] = []
    train_student(student, rows, tmp_path / "one", BF16, on_log=one.append)
    halves = BF16.model_copy(update={"num_processes": 2})
    train_student(student, rows, tmp_path / "two", halves, on_log=two.append)
    assert losses(two) == pytest.approx(losses(one), rel=5e-3)


def test_halved_micro_batches_give_the_same_losses(student: ModelConfig, tmp_path: Path) -> None:
    config = IN_THREE_PARTS.model_copy(update={"dtype": "bf16"})
    whole: list[int] = []
    _, before = train_with(limited(10_000, calls=whole), Path(student.model), tmp_path / "whole", config)
    limit = limited(max(whole) // 3, calls=[], backward=True)
    _, after = train_with(limit, Path(student.model), tmp_path / "halved", config)
    assert any("out of memory" in row.get("note", "") for row in after)
    assert losses(after) == pytest.approx(losses(before), rel=5e-3)


def test_adapters_are_trained_on_frozen_weights_in_bf16(rows: Path, tmp_path: Path) -> None:
    student = ModelConfig(model=str(FAMILY / "student"))
    config = BF16.model_copy(update={"lora": LoraConfig(r=4, alpha=16, merge=True), "learning_rate": 5e-3})
    found: dict[str, list[float]] = {}
    for dtype in ("fp32", "bf16"):
        logs: list[dict[str, Any]] = []
        out = tmp_path / dtype
        result = train_student(student, rows, out, config.model_copy(update={"dtype": dtype}), on_log=logs.append)
        found[dtype] = losses(logs)
        assert result.validation_loss_before is not None
        assert result.validation_loss_after is not None
        assert result.validation_loss_after < 0.8 * result.validation_loss_before
        adapters = load_file(out / "adapter" / "adapter_model.safetensors")
        assert {weight.dtype for weight in adapters.values()} == {torch.float32}
        assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)
    # Merged in fp32, onto the weights in bf16 that they were trained on: nothing of a small change is lost.
    base, merged = load_file(Path(student.model) / "model.safetensors"), load_file(tmp_path / "bf16/model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    adapters = load_file(tmp_path / "bf16/adapter/adapter_model.safetensors")
    down, up = (adapters[f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(merged[name], base[name].bfloat16().float() + 4 * up @ down, rtol=1e-5, atol=1e-6)
    AutoModelForCausalLM.from_pretrained(tmp_path / "bf16")


def test_frozen_weights_take_half_the_memory(student: ModelConfig) -> None:
    from distill_lab.train.lora import add_adapters

    model, _ = load_model(student)
    adapted = add_adapters(model, LoraConfig(r=4), name="x", seed=0)
    Bf16Passes(adapted, in_place=True)
    add_embedding_gradients_in_place(adapted)
    for name, weight in adapted.named_parameters():
        small = weight.requires_grad or "norm" in name
        assert weight.dtype == (torch.float32 if small else torch.bfloat16), name


def test_auto_takes_the_faster_dtype_and_keeps_it(
    student: ModelConfig, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def timed(shapes: Any, *, rows: Any) -> torch.dtype:
        asked.append(sorted(set(shapes)))
        return torch.bfloat16 if len(asked) == 1 else torch.float32

    monkeypatch.setattr(plan, "fastest_dtype", timed)
    config = BF16.model_copy(update={"dtype": "auto", "max_steps": 2})
    logs: list[dict[str, Any]] = []
    result = train_student(student, rows, tmp_path / "student", config, on_log=logs.append)
    assert result.dtype == "bf16"
    assert {"note": "computing in bf16, with weights, loss and optimizer in fp32"} in logs
    assert (32, 64) in asked[0]
    # A training that goes on computes as it began, whatever the clock says by then.
    model, _ = load_model(student, training=True)
    work = tmp_path / "work"
    work.mkdir()
    asked.clear()
    assert plan.with_dtype(config, model, work).dtype == "bf16"
    assert plan.with_dtype(config, model, work).dtype == "bf16"
    assert len(asked) == 1
    for damaged in ("", "{", '"fp8"', "[1]"):
        (work / "dtype.json").write_text(damaged, encoding="utf-8")
        assert plan.with_dtype(config, model, work).dtype == "fp32"
    assert train_student(student, rows, tmp_path / "other", config).dtype == "fp32"
    assert train_student(student, rows, tmp_path / "asked", BF16.model_copy(update={"max_steps": 1})).dtype == "bf16"


def test_tiny_models_stay_in_fp32(rows: Path, tmp_path: Path) -> None:
    config = TrainConfig(max_steps=1, validation_fraction=0)
    assert train_student(ModelConfig(model="tiny:student"), rows, tmp_path / "student", config).dtype == "fp32"
