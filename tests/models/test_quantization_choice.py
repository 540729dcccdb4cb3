"""What `auto` quantization means: chosen from all memory a GPU has, whatever is free, recorded, and refused in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.device import is_out_of_memory
from distill_lab.errors import ModelError
from distill_lab.generation.request_cache import model_key
from distill_lab.models import loading
from distill_lab.models.loading import load_model, resolve_precision
from distill_lab.models.precision import Weights, choose_quantization, count_weights, is_spread
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
QWEN_7B = Weights(total=7_616_000_000, embeddings=1_090_000_000, quantizable=6_525_000_000)
QWEN_14B = Weights(total=14_770_000_000, embeddings=1_557_000_000, quantizable=13_210_000_000)
TRANSFORMERS = EngineConfig(engine="transformers")


def fake_gpu(monkeypatch: pytest.MonkeyPatch, total: float, *, free: float = 0.0, number: int = 1) -> None:
    """A GPU with `total` bytes of memory, of which `free` are free."""
    monkeypatch.setattr(loading, "best_device", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (int(free), int(total)))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(total_memory=int(total))
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


def test_auto_takes_the_first_level_that_the_whole_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        15.6e9: ("8bit", "4bit"),  # T4
        24e9: ("none", "8bit"),
        40e9: ("none", "none"),
    }
    for total, levels in expected.items():
        fake_gpu(monkeypatch, total, free=1e9)
        assert tuple(choose_quantization("auto", weights, GPU) for weights in (QWEN_7B, QWEN_14B)) == levels
    assert choose_quantization("auto", QWEN_14B, CPU) == "none"
    assert choose_quantization("4bit", QWEN_7B, CPU) == "4bit"


def test_what_is_free_decides_nothing(random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(model=str(random_model()), quantization="auto")
    size = 2 * load_model(model)[0].num_parameters()
    for total, level in ((2 * size, "none"), (1.1 * size, "8bit")):
        for free in (0.0, total):
            fake_gpu(monkeypatch, total, free=free)
            assert resolve_precision(model) == model.model_copy(update={"quantization": level, "dtype": "fp16"})
    for free in (0, 80e9):
        fake_gpu(monkeypatch, 80e9, free=free, number=8)
        assert not is_spread(QWEN_14B, "none", GPU)
        assert is_spread(Weights(72_000_000_000, 2_000_000_000, 70_000_000_000), "8bit", GPU)


def test_the_choice_is_recorded_and_part_of_the_caches_key(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ModelConfig(model=str(random_model()), quantization="auto")
    size = 2 * load_model(model)[0].num_parameters()
    keys = {}
    for total, level in ((2 * size, "none"), (1.1 * size, "8bit")):
        fake_gpu(monkeypatch, total)
        keys[level] = model_key(model, TRANSFORMERS)
        assert keys[level] == model_key(model.model_copy(update={"quantization": level}), TRANSFORMERS)
        with Run.open(tmp_path / level, recipe="test", config={}) as run:
            assert Pipeline(run, engine=TRANSFORMERS).resolve(model).quantization == level
        [recorded] = json.loads((tmp_path / level / "run.json").read_text())["models"].values()
        assert recorded["quantization"] == level
    assert keys["none"] != keys["8bit"]


@pytest.fixture(scope="module")
def mixture(random_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(random_model())
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    sizes |= {"num_key_value_heads": 1, "num_experts": 8, "moe_intermediate_size": 64, "intermediate_size": 128}
    folder = tmp_path_factory.mktemp("mixture")
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantization_that_would_miss_the_experts_is_refused_with_the_size(mixture: Path, quantization: Any) -> None:
    with pytest.raises(ModelError, match=rf"{quantization} would quantize only \d+% .*experts.* GB instead of .* GB"):
        load_model(ModelConfig(model=str(mixture), quantization=quantization))


def test_auto_leaves_such_a_mixture_as_it_is(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = count_weights(loading._skeleton(str(mixture), {"trust_remote_code": False}))
    assert 0 < weights.share < 0.3
    assert weights.bytes("4bit") > 0.8 * weights.bytes("none")
    fake_gpu(monkeypatch, 1000)
    assert choose_quantization("auto", weights, GPU) == "none"


def test_a_full_gpu_shows_in_cublas_too() -> None:
    for status in ("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED"):
        assert is_out_of_memory(RuntimeError(f"CUDA error: {status} when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"))


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA has such segments on Linux only")
@pytest.mark.parametrize("name", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_gpu_memory_is_taken_in_segments_that_grow_unless_the_user_says_else(name: str) -> None:
    code = "import os, sys, distill_lab; print('torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF'))"
    environment = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    if name:
        environment[name] = "max_split_size_mb:64"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    expected = {"": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}.get(name, "None")
    assert said.split() == ["False", expected]
