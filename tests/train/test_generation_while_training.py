"""A student that is being trained is still a student: it generates and has logits as if no loss were installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill_lab.config import LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.train import loss_module
from distill_lab.train.lora import add_adapters
from distill_lab.train.packing import collate
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_model
from tests.helpers import CROSS_ENTROPY, IN_THREE_PARTS, by_id, make_prompts, toy_rows
from tests.train.test_packing import build, rows

pytestmark = pytest.mark.slow

IDS = torch.tensor([[0, 0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15]])
MASK = (IDS != 0).long()
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": LoraConfig(r=4)},
    "bf16": {"dtype": "bf16"},
    "lora in bf16": {"lora": LoraConfig(r=4), "dtype": "bf16"},
    "recomputed": {"gradient_checkpointing": True},
}


def answers(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Greedy tokens of two prompts, one padded on the left; logits of the second; those of the first from its answer on."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        tokens = model.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        logits = model(input_ids=IDS[1:], use_cache=False).logits.float()
        mask = torch.cat([MASK, torch.ones_like(tokens[:, IDS.shape[1] :])], 1)
        padded = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
    model.train(was_training)
    return tokens, logits, padded[:, IDS.shape[1] - 1 : -1]


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "granite", "cohere", "gpt2"])
def test_a_loss_leaves_the_student_as_it_was(kind: str, adapters: bool) -> None:
    model = build(kind).eval()
    if adapters and kind == "gpt2":
        pytest.skip("its layers are no linear ones")
    model = add_adapters(model, LoraConfig(r=4), name="x", seed=0).eval() if adapters else model
    expected = answers(model)
    _, packed = rows(3)
    batch = collate([[row] for row in packed])
    loss_module.install(model, CROSS_ENTROPY)
    total = model(batch).total
    total.backward()
    for found, right in zip(answers(model), expected, strict=True):
        assert torch.equal(found, right)
    assert model(batch).total.item() == pytest.approx(total.item(), rel=1e-5)
    loss_module.uninstall(model)
    assert "forward" not in model.__dict__
    assert torch.equal(answers(model)[1], expected[1])


def test_a_forward_that_the_model_came_with_is_kept() -> None:
    """Such as that of accelerate's hooks on quantized models."""
    model = build("qwen3").eval()
    calls: list[int] = []
    own = model.forward
    model.forward = lambda *inputs, **settings: calls.append(1) or own(*inputs, **settings)
    hooked = model.forward
    for _ in range(2):
        loss_module.install(model, CROSS_ENTROPY)
    assert model(input_ids=IDS).logits.shape[:2] == IDS.shape
    assert calls == [1]
    loss_module.uninstall(model)
    assert model.forward is hooked


def train(student: ModelConfig, folder: Path, config: TrainConfig, during: Callable[[Any], None]) -> dict[str, Any]:
    """Train, with `during(model)` called after the second step; the weights."""
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", toy_rows())
    model: Any
    model, tokenizer = load_model(student, training=not config.lora.r)
    if config.lora.r:
        model = add_adapters(model, config.lora, name="x", seed=0)
    data = read_rows(folder / "rows.jsonl", tokenizer, max_length=512, validation_fraction=0, seed=0)

    def on_log(row: dict[str, Any]) -> None:
        if row.get("step") == 2 and "loss" in row:
            during(model)

    train_model(model, tokenizer, data, folder / "student", config, key="k", on_log=on_log)
    return load_file(next((folder / "student").glob("*model.safetensors")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_generates_between_steps_and_its_training_goes_on_as_without(
    kind: str, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    student = ModelConfig(model=str(random_model(hidden=32, layers=2)))
    config = IN_THREE_PARTS.model_copy(update={"max_steps": 4, "learning_rate": 2e-2, **KINDS[kind]})
    exact = config.dtype == "fp32"
    done: list[bool] = []

    def generate(model: Any) -> None:
        found = answers(model)
        plain: Any
        plain, tokenizer = load_model(student)
        if config.lora.r:
            plain = add_adapters(plain, config.lora, name="x", seed=0)
        plain.load_state_dict(model.state_dict())
        expected = answers(plain)
        assert not torch.equal(found[0], answers(load_model(student)[0])[0]), "it has learned something"
        for mine, right in zip(found[1:], expected[1:], strict=True):
            if exact:
                assert torch.equal(mine, right)
            elif mine.shape == right.shape and torch.equal(found[0], expected[0]):
                assert (mine - right).norm() < 0.03 * right.norm()
        # Every token is the best one by the model's own logits of the padded rows: none looked at padding.
        assert torch.equal(found[0][:, IDS.shape[1] :], found[2].argmax(-1)) or not exact
        if not config.lora.r:
            engines = [TransformersEngine(each, tokenizer) for each in (model.eval(), plain.eval())]
            texts = [by_id(engine.generate(make_prompts(5), SamplingConfig(max_new_tokens=8))) for engine in engines]
            assert not exact or texts[0] == texts[1]
            model.train()
        done.append(True)

    with_answers = train(student, tmp_path / "with", config, generate)
    without = train(student, tmp_path / "without", config, lambda model: None)
    assert done == [True]
    assert all(torch.equal(weight, without[name]) for name, weight in with_answers.items())
