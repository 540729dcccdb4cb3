"""What a model is computed in: timed on a CPU, chosen once, recorded, and part of what its answers are kept under."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab import device
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.device import bf16_gain, fastest_dtype
from distill_lab.errors import UserError
from distill_lab.evaluation import speed
from distill_lab.generation.decoding.attention import with_shared
from distill_lab.generation.decoding.prefixes import Prefix
from distill_lab.generation.decoding.sampler import Sampler
from distill_lab.generation.decoding.sequence import DecodingSequence
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.generation.request_cache import model_key
from distill_lab.models.loading import load_model, resolve_precision
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Prompt
from tests.helpers import make_prompts

ON_CPU = not device.has_gpu()
BIG = [(2048, 8192), (8192, 2048)]
TRANSFORMERS = EngineConfig(engine="transformers")
pytestmark = pytest.mark.skipif(not ON_CPU, reason="a GPU's dtype is not timed")


def claim(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """Models of any size are timed, with this outcome."""
    monkeypatch.setattr(device, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(device, "_gain", lambda *key: gain)


def test_both_dtypes_are_timed_and_small_models_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = bf16_gain(BIG)
    assert 0 < gain < 1000
    assert fastest_dtype(BIG) == (torch.bfloat16 if gain >= device.MIN_GAIN else torch.float32)

    def never(*key: Any) -> float:
        raise AssertionError("timed")

    monkeypatch.setattr(device, "_gain", never)
    assert fastest_dtype([(96, 384)] * 20) == torch.float32


def test_a_gain_has_to_be_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for gain, dtype in ((0.01, torch.float32), (1.2, torch.float32), (1.4, torch.bfloat16), (8.0, torch.bfloat16)):
        claim(monkeypatch, gain)
        assert fastest_dtype(BIG) == dtype


def test_the_embedded_family_stays_in_fp32() -> None:
    for name in ("tiny:teacher", "tiny:student"):
        assert resolve_precision(ModelConfig(model=name)).dtype == "fp32"


def test_auto_loads_what_is_faster_and_a_setting_overrides_it(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(monkeypatch, 3.0)
    model = ModelConfig(model=str(random_model()))
    assert resolve_precision(model) == model.model_copy(update={"dtype": "bf16", "quantization": "none"})
    assert load_model(model)[0].dtype == torch.bfloat16
    for dtype, expected in (("fp32", torch.float32), ("fp16", torch.float16)):
        asked = model.model_copy(update={"dtype": dtype})
        assert resolve_precision(asked) == asked
        assert load_model(asked)[0].dtype == expected
    # Weights to be trained are fp32 whatever they are computed in.
    assert load_model(model, training=True)[0].dtype == torch.float32


def test_answers_are_kept_under_what_they_were_computed_in(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(model=str(random_model()))
    named = {
        dtype: model_key(model.model_copy(update={"dtype": dtype}), TRANSFORMERS) for dtype in ("fp32", "bf16", "fp16")
    }
    assert len(set(named.values())) == 3
    for gain, dtype in ((0.5, "fp32"), (3.0, "bf16")):
        claim(monkeypatch, gain)
        assert model_key(model, TRANSFORMERS) == named[dtype]


def test_a_run_records_the_choice_and_keeps_to_it(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ModelConfig(model=str(random_model()))

    def settle(**fields: str) -> ModelConfig:
        with Run.open(tmp_path, recipe="test", config={}) as run:
            return Pipeline(run, engine=TRANSFORMERS).resolve(model.model_copy(update=fields))

    claim(monkeypatch, 3.0)
    assert settle().dtype == "bf16"
    [recorded] = json.loads((tmp_path / "run.json").read_text())["models"].values()
    assert (recorded["dtype"], recorded["quantization"]) == ("bf16", "none")
    # Timed again the other way on the same machine, it stays; on another one that has no units it is refused.
    claim(monkeypatch, 0.1)
    assert settle().dtype == "bf16"
    monkeypatch.setattr(device, "device_name", lambda device: "another machine")
    with pytest.raises(UserError, match=r"was computed here in bf16.* on another machine it would be fp32.*dtype"):
        settle()
    assert settle(dtype="bf16").dtype == "bf16"


def test_measured_processes_compute_as_the_one_that_started_them(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(monkeypatch, 3.0)

    def jobs(models: Any, prompts: Any, **rest: Any) -> Any:
        raise UserError(json.dumps([model.dtype for model in models.values()]))

    monkeypatch.setattr(speed, "peak_memory", jobs)
    with pytest.raises(UserError, match=r'\["bf16"\]'):
        speed.measure(
            {"one": ModelConfig(model=str(random_model()))}, make_prompts(1), sampling=SamplingConfig(max_new_tokens=2)
        )


def test_penalties_are_not_rounded_to_half_precision() -> None:
    # 10 / 1.1 = 9.09, which bf16 rounds to the other token's 9.0625.
    logits_BV = torch.tensor([[9.0625, 10.0, 0.0]], dtype=torch.bfloat16)
    row = DecodingSequence(Prompt("p", []), 0, [1], 4)
    for dtype in (torch.float32, torch.bfloat16):
        sampler = Sampler(SamplingConfig(repetition_penalty=1.1), vocabulary=3, end_ids=[2], min_new_tokens=0)
        assert sampler.add([row], logits_BV.to(dtype)).tolist() == [1]


def test_a_shared_prefix_is_joined_without_rounding_its_share() -> None:
    torch.manual_seed(0)
    heads, size, tokens = 4, 16, 40
    query, own = torch.randn(64, heads, size), torch.randn(64, heads, size)
    keys, values = torch.randn(1, heads, tokens, size), 8 + torch.randn(1, heads, tokens, size)
    sums = torch.full((64, heads), 3.0)
    half = [tensor.bfloat16() for tensor in (query, own, keys, values)]

    def joined(query: Any, own: Any, keys: Any, values: Any) -> torch.Tensor:
        prefix = Prefix([0] * tokens, None, tokens, 0, 1, keys_values=[(keys, values)])
        return with_shared((own.clone(), sums.clone()), query, [(prefix, None)], 0, 0.25)

    exact = joined(*(tensor.float() for tensor in half))
    error = (joined(*half).float() - exact).abs()
    # Half a unit in the last place of 8 is 0.03, for what is seen and for what is joined.
    assert error.max() < 0.07


@pytest.mark.parametrize("model", ["tiny:teacher", "random"])
def test_bf16_answers_like_fp32(model: str, random_model: Callable[..., Path]) -> None:
    name = model if model != "random" else str(random_model(initializer_range=0.15))
    prompts, sampling = make_prompts(12), SamplingConfig(max_new_tokens=8)
    texts = []
    for dtype in ("fp32", "bf16"):
        engine = TransformersEngine(*load_model(ModelConfig(model=name, dtype=dtype)), batch_size=5)
        assert engine._flat
        texts.append([row.content for row in sorted(engine.generate(prompts, sampling), key=lambda row: row.id)])
    equal = sum(one == two for one, two in zip(*texts, strict=True))
    assert equal >= (10 if model == "tiny:teacher" else 4)
