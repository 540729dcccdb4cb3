"""Packed layers: the same answers on several architectures, nothing lost or counted twice, and whose layers stay plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.generation.engines.transformers import TransformersEngine, load
from distill_lab.models import packed_linear
from distill_lab.models.loading import load_model, load_tokenizer, num_parameters
from distill_lab.models.packed_linear import PackedLinear, num_packed, pack_linears
from tests.helpers import ARCHITECTURES, assert_equals_generate, by_id, make_prompts, other_architecture

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the tests are too small for a gain; pack them all the same."""
    monkeypatch.setattr(packed_linear, "gain", lambda shape, dtype: 2.0)


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    return [layer for layer in model.modules() if isinstance(layer, PackedLinear)]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_packed_model_computes_the_same(kind: str, dtype: Any, tmp_path: Path) -> None:
    if not packed_linear._seconds(64, 64, getattr(torch, "bfloat16" if dtype == "bf16" else "float32"), 1):
        pytest.skip(f"oneDNN has no packed products in {dtype} for this processor")
    config = other_architecture(kind, load_tokenizer(ModelConfig(model="tiny:student")), tmp_path)
    config = config.model_copy(update={"dtype": dtype})
    plain, tokenizer = load_model(config)
    packed, _ = load_model(config)
    number = pack_linears(packed, min_weights=1)
    assert number == len(packed_layers(packed)) > 2
    assert num_parameters(packed) == num_parameters(plain)
    head = packed.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    assert head.weight is not None
    assert num_packed(packed) == sum(each.num_weights for each in packed_layers(packed) if each is not head)
    assert all(layer.weight is None for layer in packed_layers(packed) if layer is not head)
    tolerance = 1e-5 if dtype == "fp32" else 0.05
    with torch.inference_mode():
        for length in (1, 5, 40):
            ids = torch.arange(3, 3 + length)[None] % len(tokenizer)
            expected = plain(input_ids=ids).logits.float()
            apart = (packed(input_ids=ids).logits.float() - expected).abs().max() / expected.abs().max()
            assert apart < tolerance
    if dtype == "fp32":
        assert_equals_generate(TransformersEngine(packed, tokenizer), make_prompts(6), SamplingConfig(max_new_tokens=8))
    assert pack_linears(packed, min_weights=1) == 0, "nothing is packed twice"


def test_small_and_trained_models_stay_plain_and_adapters_compute_the_same() -> None:
    config = ModelConfig(model="tiny:student", dtype="fp32")
    assert packed_layers(load(config, EngineConfig()).model) == []
    training, _ = load_model(config, training=True)
    assert pack_linears(training, min_weights=1) == 0
    training.eval()
    assert pack_linears(training, min_weights=1) == 0, "weights that are trained"
    model, _ = load_model(config)
    adapted: Any = get_peft_model(model, PeftLoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.requires_grad_(False).eval()
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits
        pack_linears(adapted, min_weights=1)
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_whose_weight_somebody_reads_leaves_all_of_them_plain() -> None:
    model, _ = load_model(ModelConfig(model="tiny:student", dtype="fp32"))
    reader: Any = model.get_submodule("model.layers.0.mlp")
    compute = reader.forward

    def reads(hidden: torch.Tensor) -> torch.Tensor:
        return compute(hidden.to(reader.up_proj.weight.dtype))

    reader.forward = reads
    before = {name: id(layer) for name, layer in model.named_modules()}
    assert pack_linears(model, min_weights=1) == 0
    assert {name: id(layer) for name, layer in model.named_modules()} == before


def test_no_rows_and_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(48, 24).requires_grad_(False)
    expected = layer(torch.ones(2, 3, 48))
    packed = PackedLinear(layer, keep=False)
    packed.pack()
    torch.testing.assert_close(packed(torch.ones(2, 3, 48)), expected)
    assert packed(torch.ones(0, 48)).shape == (0, 24)
    assert packed(torch.ones(3, 0, 48)).shape == (3, 0, 24)


def test_products_that_err_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    packed_linear._seconds.cache_clear()
    assert packed_linear.gain((64, 48), torch.float32) > 0

    def fails(*arguments: object) -> torch.Tensor:
        raise NotImplementedError

    for product in (lambda hidden, packed, bias: torch.zeros(len(hidden), 48), fails):
        packed_linear._seconds.cache_clear()
        monkeypatch.setattr(packed_linear, "_product", product)
        assert packed_linear.gain((64, 48), torch.float32) == 0.0
    packed_linear._seconds.cache_clear()


def test_answers_of_a_packed_engine_are_those_of_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(model="tiny:student", dtype="fp32")
    sampling = SamplingConfig(max_new_tokens=24, thinking=False)
    prompts = make_prompts(12)
    plain = by_id(load(config, EngineConfig()).generate(prompts, sampling))
    monkeypatch.setattr(
        "distill_lab.generation.engines.transformers.pack_linears", lambda model: pack_linears(model, min_weights=1)
    )
    engine = load(config, EngineConfig())
    assert packed_layers(engine.model)
    assert by_id(engine.generate(prompts, sampling)) == plain
