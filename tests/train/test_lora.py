"""Adapters on full and on 4-bit weights: what is trained, what is saved, what merging gives, and resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lab.config import AS_GIVEN, LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.planning.preflight import check_model, check_training
from distill_lab.tiny import FAMILY
from distill_lab.train.lora import add_adapters, merge_directory, merged
from distill_lab.train.student import train_student
from tests.helpers import toy_rows, train_and_kill

pytestmark = pytest.mark.slow

LORA = TrainConfig(
    dtype="fp32",
    learning_rate=5e-3,
    tokens_per_batch=128,
    num_epochs=3,
    logging_steps=1,
    validation_fraction=0.1,
    lora=LoraConfig(r=4),
)
IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """The tiny student, whose sizes 4 bits take on a CPU (see `models.fits_4bit`)."""
    folder = tmp_path_factory.mktemp("base") / "student"
    shutil.copytree(FAMILY / "student", folder)
    return ModelConfig(model=str(folder))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows())
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def with_lora(**settings: Any) -> TrainConfig:
    return LORA.model_copy(update={"lora": LoraConfig(**{"r": 4, **settings})})


def test_adapters_are_saved_alone_and_load_onto_their_base(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    before = {path.name: path.read_bytes() for path in Path(student.model).iterdir()}
    result = train_student(student, rows, out, LORA)
    assert result.validation_loss_after is not None
    assert result.validation_loss_before is not None
    assert result.validation_loss_after < 0.8 * result.validation_loss_before
    assert {path.name: path.read_bytes() for path in Path(student.model).iterdir()} == before
    names = {path.name for path in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "config.json", "README.md", "training_args.bin"}
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == student.model
    weights = load_file(out / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert (out / "adapter_model.safetensors").stat().st_size < 0.5 * len(before["model.safetensors"])

    # Ours merges them when it loads, peft attaches them: the same function.
    ours, _ = load_model(ModelConfig(model=str(out)))
    assert not any("lora_" in name for name, _ in ours.named_parameters())
    merge_directory(ModelConfig(model=str(out)), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(ours), logits(plain))
    with pytest.raises(UserError, match="no adapters"):
        merge_directory(ModelConfig(model=str(tmp_path / "merged")), tmp_path / "again")
    theirs = AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)
    base, _ = load_model(student)
    assert (logits(ours) - logits(base)).abs().max() > 0.1


def test_merged_on_request_beside_the_adapters(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    train_student(student, rows, tmp_path / "alone", LORA)
    train_student(student, rows, tmp_path / "merged", with_lora(merge=True))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    names = ("alone/adapter_model.safetensors", "merged/adapter/adapter_model.safetensors")
    alone, beside = (load_file(tmp_path / name) for name in names)
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[key], beside[key]) for key in alone)
    attached, _ = load_model(ModelConfig(model=str(tmp_path / "alone")))
    torch.testing.assert_close(logits(plain), logits(attached), rtol=1e-4, atol=1e-5)


def test_four_bit_weights_are_trained_through_and_unpacked_when_merged(
    student: ModelConfig, rows: Path, tmp_path: Path
) -> None:
    four = student.model_copy(update={"quantization": "4bit"})
    result = train_student(four, rows, tmp_path / "q", LORA)
    assert result.validation_loss_after is not None
    assert result.validation_loss_before is not None
    assert result.validation_loss_after < 0.8 * result.validation_loss_before
    train_student(four, rows, tmp_path / "m", with_lora(merge=True))
    attached, _ = load_model(ModelConfig(model=str(tmp_path / "q"), quantization="4bit"))
    quantized = [name for name, layer in attached.named_modules() if type(layer).__name__ == "Linear4bit"]
    assert any("base_layer" in name for name in quantized)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    # The CPU kernel of 4 bits computes in bf16 where the CPU has it, hence the tolerance; the unquantized base with these
    # adapters differs by much more.
    merge_directory(ModelConfig(model=str(tmp_path / "q"), quantization="4bit"), tmp_path / "later")
    later = load_file(tmp_path / "later" / "model.safetensors")
    assert all(
        torch.equal(weight, later[name]) for name, weight in load_file(tmp_path / "m" / "model.safetensors").items()
    )
    error = (logits(plain) - logits(attached)).norm() / logits(plain).norm()
    onto_full, _ = load_model(ModelConfig(model=str(tmp_path / "q")))
    assert error < 0.02
    assert (logits(plain) - logits(onto_full)).norm() / logits(plain).norm() > 2 * error


def test_gradients_through_four_bits_are_those_of_what_the_bits_stand_for(student: ModelConfig) -> None:
    four, _ = load_model(student.model_copy(update={"quantization": "4bit"}))
    adapted: Any = add_adapters(four, LoraConfig(r=4), name="x", seed=0)
    # An evaluation first, as the trainer does: it must not repack the weights.
    logits(adapted)
    adapted.train()
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapters = {name: weight.detach().clone() for name, weight in adapted.named_parameters() if "lora_" in name}
    adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    gradients = {name: weight.grad for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert gradients.keys() == adapters.keys()

    plain_base, _ = load_model(student.model_copy(update={"quantization": "4bit"}))
    unpacked: Any = add_adapters(plain_base.dequantize(), LoraConfig(r=4), name="x", seed=0)
    unpacked.load_state_dict(adapters, strict=False)
    unpacked(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    for name, weight in unpacked.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(
                gradients[name], weight.grad, rtol=1e-4, atol=1e-4 * weight.grad.abs().max().item()
            )
    torch.testing.assert_close(logits(merged(adapted)), logits(unpacked), rtol=1e-4, atol=1e-4)


def test_killed_and_resumed_gives_the_same_adapters(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    four = student.model_copy(update={"quantization": "4bit"})
    config = with_lora(dropout=0.1).model_copy(update={"save_steps": 4})
    train_student(four, rows, tmp_path / "whole", config)
    train_and_kill(four, rows, tmp_path / "killed", config, step=6)
    result = train_student(four, rows, tmp_path / "killed", config)
    assert result.resumed_from == 4
    expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_an_unknown_target_is_named(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no linear layer c_attn; it has down_proj, .*all-linear"):
        train_student(student, rows, tmp_path / "student", with_lora(targets=("q_proj", "c_attn")))
    assert not (tmp_path / "student").exists()


def test_the_frozen_head_costs_no_gradient(student: ModelConfig, rows: Path, tmp_path: Path) -> None:
    """A trained head would hold a gradient of its own size; a frozen one none, nor would the embeddings."""
    result = train_student(student, rows, tmp_path / "student", with_lora(targets=("q_proj",)))
    assert result.steps > 3
    names = load_file(tmp_path / "student" / "adapter_model.safetensors").keys()
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj"}


MIXTURES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                 "shared_expert_intermediate_size": 16},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def random_mixture(folder: Path, kind: str, **changes: Any) -> ModelConfig:
    """A random mixture of experts with the tiny tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "student")
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**settings | MIXTURES[kind] | changes)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(model=str(folder))


@pytest.fixture(params=list(MIXTURES))
def mixture(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    return random_mixture(tmp_path / "moe", request.param)


def test_adapters_leave_experts_and_router_alone(mixture: ModelConfig, rows: Path, tmp_path: Path) -> None:
    logs: list[dict[str, Any]] = []
    # peft takes no dropout on experts that are held in one tensor.
    config = with_lora(dropout=0.05).model_copy(update={"max_steps": 2})
    result = train_student(mixture, rows, tmp_path / "student", config, on_log=logs.append)
    weights = load_file(tmp_path / "student" / "adapter_model.safetensors")
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in weights}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"}
    number = sum(weight.numel() for weight in weights.values())
    assert result.num_trained == number
    base, _ = load_model(mixture)
    total = base.num_parameters()
    assert next(row["note"] for row in logs if row.get("note", "").startswith("training ")) == (
        f"training adapters of rank 4: {number:,} weights beside {total:,} frozen ones ({number / total:.2%}), "
        "learning rate 0.005"
    )
    attached, _ = load_model(ModelConfig(model=str(tmp_path / "student")))
    assert (logits(attached) - logits(base)).abs().max() > 0
    for target in ("gate", "experts", "down_proj", "gate_up_proj"):
        with pytest.raises(UserError, match=rf"outside of its experts and their router, {target}, which .* q_proj"):
            train_student(mixture, rows, tmp_path / "no", with_lora(targets=("q_proj", target)))


def test_a_mixture_in_few_bits_is_refused_before_a_teacher_is_asked(tmp_path: Path) -> None:
    mixture = random_mixture(
        tmp_path / "moe", "Qwen3Moe", hidden_size=64, num_experts=16, moe_intermediate_size=64, mlp_only_layers=[]
    )
    for quantization in ("4bit", "8bit"):
        student = ModelConfig(model=mixture.model, quantization=quantization)
        with pytest.raises(
            UserError, match=rf"(?s)Invalid student model.*{quantization} would quantize only .* GB instead of"
        ):
            check_model(student, role="student", example="X")
    with pytest.raises(UserError, match="experts and their router, gate, which"):
        check_training(mixture, with_lora(targets=("q_proj", "gate")))


@pytest.mark.parametrize(("r", "rate", "used"), [(0, None, 2e-5), (4, None, 2e-4), (4, 1e-5, 1e-5), (0, 1e-5, 1e-5)])
def test_the_learning_rate_fits_what_is_trained(
    student: ModelConfig, rows: Path, tmp_path: Path, r: int, rate: float | None, used: float
) -> None:
    logs: list[dict[str, Any]] = []
    config = TrainConfig(learning_rate=rate, max_steps=1, warmup_ratio=0, lora=LoraConfig(r=r))
    result = train_student(student, rows, tmp_path / "student", config, on_log=logs.append)
    assert result.learning_rate == used
    assert next(row["learning_rate"] for row in logs if "learning_rate" in row) <= used
    note = next(row["note"] for row in logs if row.get("note", "").startswith("training "))
    assert f"learning rate {used:g}" in note
    assert ("at which adapters learn little" in note) == (r > 0 and used == 1e-5)
    # Records say the number; settings that more is put on leave it open.
    assert config.model_dump()["learning_rate"] == used
    assert config.model_dump(context=AS_GIVEN)["learning_rate"] == rate
    assert config.model_copy(update={"lora": LoraConfig(r=8)}).peak_learning_rate == (rate or 2e-4)
