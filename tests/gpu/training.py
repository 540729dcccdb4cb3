"""GPU checks of training: what stays behind, peaks of memory, limits of memory, fp16, experts, merging."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.models.loading import load_model
from distill_lab.train.student import train_student
from tests.gpu import shapes
from tests.gpu.checks import Setting, check

STEPS = TrainConfig(
    learning_rate=1e-4, tokens_per_batch=2048, max_length=1024, max_steps=3, logging_steps=1, validation_fraction=0
)


def student(setting: Setting, shape: str, **settings: Any) -> ModelConfig:
    """A student of random weights in fp32 on disk (16 bits for the 7B)."""
    dtype = setting.dtype if shape.endswith("7b") else torch.float32
    path = shapes.folder(shape, setting.scratch, small=setting.small, device=setting.device, dtype=dtype)
    return ModelConfig(model=str(path), **settings)


def train(setting: Setting, name: str, model: ModelConfig, config: TrainConfig, *, words: int = 40) -> list[float]:
    """Train on made rows, into a folder of the scratch named `name`; the losses by step."""
    rows = shapes.write_rows(setting.scratch / f"{name}.jsonl", 16 if setting.small else 400, words=words)
    if setting.small:
        config = config.model_copy(update={"tokens_per_batch": 256})
    losses: list[float] = []

    def keep(row: dict[str, Any]) -> None:
        if "loss" in row:
            losses.append(row["loss"])

    train_student(model, rows, setting.scratch / name, config, on_log=keep)
    return losses


@check("after-training")
def after_training(setting: Setting) -> dict[str, Any]:
    """Nothing of a training is on the GPU once it has returned."""
    train(setting, "after-training", student(setting, "qwen2.5-0.5b"), STEPS)
    left = torch.cuda.memory_allocated() if setting.on_gpu else 0
    assert left < 50_000_000, f"{left / 1e6:.0f} MB are left"
    gc.collect()
    alive = [type(each).__name__ for each in gc.get_objects() if type(each).__name__ == "StudentTrainer"]
    assert not alive
    return {"left_mb": left / 1e6}


WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "lora": {"lora": LoraConfig(r=16)},
}


@check("fit-table")
def fit_table(setting: Setting) -> dict[str, Any]:
    """Peaks of training by shape, method and tokens, for the estimator to be held against."""
    names = ["qwen2.5-0.5b", "qwen3-0.6b", "qwen2.5-1.5b", "qwen3-1.7b"][: 1 if setting.small else None]
    table: dict[str, Any] = {}
    for shape in names:
        for way, settings in WAYS.items():
            for tokens in (2048,) if setting.small else (2048, 8192):
                config = STEPS.model_copy(update={**settings, "tokens_per_batch": tokens, "max_steps": 2})
                setting.reset_peak()
                try:
                    losses = train(setting, "fit-table", student(setting, shape), config)
                except UserError as error:  # a smaller GPU: that is a figure, too
                    table[f"{shape}, {way}, {tokens} tokens"] = str(error)[:80]
                    continue
                assert len(losses) == 2
                table[f"{shape}, {way}, {tokens} tokens"] = round(setting.peak_bytes() / 1e9, 2)
        config = STEPS.model_copy(update={"max_steps": 2, "lora": LoraConfig(r=16)})
        setting.reset_peak()
        train(setting, "fit-table", student(setting, shape, quantization="4bit"), config)
        table[f"{shape}, qlora, 2048 tokens"] = round(setting.peak_bytes() / 1e9, 2)
    return {"peak_gb": table}


@check("oom-training")
def oom_training(setting: Setting) -> dict[str, Any]:
    """In the memory of a T4 micro-batches are halved, and the losses are those of a GPU with room."""
    model, config = student(setting, "qwen2.5-0.5b"), STEPS.model_copy(update={"tokens_per_batch": 8192})
    free = train(setting, "oom-free", model, config)
    with setting.limited():
        little = train(setting, "oom-little", model, config)
    assert len(free) == len(little) == 3
    for one, other in zip(free, little, strict=True):
        assert abs(one - other) <= 1e-2 * one, (free, little)
    return {"losses": free, "losses_in_a_t4": little}


@check("fp16")
def fp16(setting: Setting) -> dict[str, Any]:
    """bf16 and fp16 follow the losses of fp32 (on a CPU only fp32 is there, and is compared with itself)."""
    steps = 4 if setting.small else 50
    config = STEPS.model_copy(update={"max_steps": steps, "num_epochs": 50.0, "learning_rate": 2e-5})
    if "dtype" not in TrainConfig.model_fields:
        first, second = (train(setting, f"fp16-{name}", student(setting, "qwen2.5-0.5b"), config) for name in "ab")
        assert first == second or setting.on_gpu
        return {"losses": first}
    found: dict[str, list[float]] = {}
    for dtype in ("fp32", "bf16", "fp16") if setting.on_gpu else ("fp32", "fp32"):
        found[dtype] = train(
            setting, f"fp16-{dtype}", student(setting, "qwen2.5-0.5b"), config.model_copy(update={"dtype": dtype})
        )
    for losses in found.values():
        assert len(losses) == steps
        assert all(abs(one - other) <= 0.02 * one for one, other in zip(found["fp32"], losses, strict=True))
    return {"last": {name: losses[-1] for name, losses in found.items()}}


@check("fragmentation")
def fragmentation(setting: Setting) -> dict[str, Any]:
    """Batches of ever other shapes: how much torch reserves beyond what it needs."""
    steps = 3 if setting.small else 60
    config = STEPS.model_copy(update={"max_steps": steps, "num_epochs": 60.0, "max_length": 512})
    setting.reset_peak()
    losses = train(setting, "fragmentation", student(setting, "qwen2.5-0.5b"), config, words=200)
    assert len(losses) == steps
    reserved = torch.cuda.max_memory_reserved() if setting.on_gpu else 0
    return {"reserved_gb": reserved / 1e9, "needed_gb": setting.peak_bytes() / 1e9}


@check("merge-7b")
def merge(setting: Setting) -> dict[str, Any]:
    """QLoRA on a 7B and merging, in the memory of a T4: the merged model computes what the adapters did on 4 bits."""
    model = student(setting, "qwen2.5-7b", quantization="4bit")
    lora = LoraConfig(r=8, targets=("q_proj", "v_proj"))
    config = STEPS.model_copy(update={"max_steps": 2, "gradient_checkpointing": True, "tokens_per_batch": 512})
    with setting.limited():
        train(setting, "merge-adapters", model, config.model_copy(update={"lora": lora}))
        train(
            setting, "merge-merged", model, config.model_copy(update={"lora": lora.model_copy(update={"merge": True})})
        )
    ids = torch.arange(5, 45, device=setting.device)[None]
    found = []
    for name, quantization in (("merge-adapters", "4bit"), ("merge-merged", "none")):
        where = ModelConfig(model=str(setting.scratch / name), quantization=quantization)  # pyright: ignore
        loaded, _ = load_model(where)
        with torch.inference_mode():
            found.append(loaded(input_ids=ids, use_cache=False).logits.float().cpu())
        del loaded
        gc.collect()
    error = ((found[0] - found[1]).norm() / found[0].norm()).item()
    assert error < 0.05, error
    return {"relative_error": error}


@check("moe")
def moe(setting: Setting) -> dict[str, Any]:
    """Adapters on a mixture of experts leave the router alone; 4 bits that would reach no expert are refused."""
    model = student(setting, "qwen3-30b-a3b, 4 layers")
    setting.reset_peak()
    train(setting, "moe", model, STEPS.model_copy(update={"max_steps": 2, "lora": LoraConfig(r=8)}))
    peak = setting.peak_bytes()
    weights = load_file(setting.scratch / "moe" / "adapter_model.safetensors")
    router = [name for name in weights if ".gate." in name or ".router." in name]
    assert not router, router[0]
    try:
        load_model(model.model_copy(update={"quantization": "4bit"}))
        refused = ""
    except UserError as error:
        refused = str(error)
    assert refused, "4 bits that leave the experts as they are were taken"
    return {"trained_millions": sum(weight.numel() for weight in weights.values()) / 1e6, "peak_gb": peak / 1e9}


def dtypes_of(folder: Path) -> set[str]:
    """The dtypes of a directory's weights."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {str(weights.get_tensor(name).dtype) for name in weights.keys()}  # noqa: SIM118 - not a dict
    return found


@check("saved-dtype")
def saved_dtype(setting: Setting) -> dict[str, Any]:
    """A student is saved in what it was computed in, and its config says so to every reader."""
    train(setting, "saved-dtype", student(setting, "qwen2.5-0.5b"), STEPS.model_copy(update={"max_steps": 1}))
    found = dtypes_of(setting.scratch / "saved-dtype")
    config = json.loads((setting.scratch / "saved-dtype" / "config.json").read_text(encoding="utf-8"))
    assert found == {f"torch.{config['dtype']}"}
    assert config["torch_dtype"] == config["dtype"]
    return {"dtype": config["dtype"]}
