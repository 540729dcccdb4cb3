"""Which training method is chosen for which memory, and that every preset finds one on every card."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, TrainConfig
from distill_lab.device import host_memory
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.pipeline.fitting import base_model_config, fit, trained_model_config
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.known_models import known_models
from distill_lab.planning.machine import Machine
from distill_lab.planning.memory_estimate import training_memory
from distill_lab.planning.method import (
    answering,
    check_answering,
    choose_method,
    preset_for,
    smaller_batches,
    with_batches,
)
from distill_lab.planning.model_shape import shape_of
from distill_lab.run import Run
from tests.helpers import toy_rows

T4 = Machine("cuda", 15e9, 12e9, "fp16")
CARDS = {
    "T4": T4,
    "24 GB": Machine("cuda", 24e9, 32e9, "bf16"),
    "40 GB": Machine("cuda", 40e9, 64e9, "bf16"),
    "80 GB": Machine("cuda", 80e9, 128e9, "bf16"),
}
RECIPES = ("system1", "system2", "cot", "verified", "prompt")
REAL = [
    (recipe, preset)
    for recipe in RECIPES
    for preset in importlib.import_module(f"distill_lab.recipes.{recipe}").PRESETS
    if preset != "tiny"
]
STUDENT = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct")
LONG = TrainConfig(learning_rate=1e-5, max_length=4096)


def step_tokens(train: TrainConfig) -> int:
    return train.tokens_per_batch * train.gradient_accumulation_steps


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(("recipe", "preset"), REAL)
def test_every_preset_finds_a_method_on_every_card(recipe: str, preset: str, card: str) -> None:
    config, machine = importlib.import_module(f"distill_lab.recipes.{recipe}").PRESETS[preset], CARDS[card]
    assert {config.teacher.model, config.student.model} <= set(known_models()), "tests have no hub to ask"
    new_tokens = config.sampling.max_new_tokens
    check_answering(config.teacher, machine=machine, new_tokens=new_tokens, role="teacher")
    found = choose_method(config.student, config.train, machine=machine)
    assert found.memory.total <= machine.usable
    assert found.memory.host <= machine.usable_ram
    assert step_tokens(found.train) == step_tokens(config.train)
    # What is asked in the proof, one model at a time: the base student and the student.
    base = base_model_config(config.student, found.student, found.train)
    after = trained_model_config(Path("student"), found.student, found.train)
    for quantization in (base.quantization, after.quantization):
        model = ModelConfig(model=config.student.model, quantization=quantization)
        assert answering(shape_of(config.student), model, machine, new_tokens=new_tokens)[1].total <= machine.usable


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("80 GB", "full fine-tune"),
        ("40 GB", "full fine-tune with checkpointing"),
        ("24 GB", "full fine-tune with checkpointing and 8-bit AdamW"),
        ("T4", "LoRA r 16 with checkpointing"),
    ],
)
def test_the_order_of_methods(card: str, words: str) -> None:
    found = choose_method(STUDENT, LONG, machine=CARDS[card])
    assert f"{words}, " in found.line
    assert found.changed == (card != "80 GB")
    if card != "80 GB":
        assert found.line.startswith("full fine-tune needs 5") or found.line.startswith("full fine-tune needs 6")
    if card == "T4":
        assert found.train.lora == LoraConfig(r=16, alpha=32, merge=True)
        assert found.train.learning_rate == pytest.approx(1e-4)
        assert "learning rate 0.0001" in found.line


def test_what_is_too_big_for_16_bits_gets_adapters_on_4_bit_weights_that_stay_apart() -> None:
    seven = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct")
    found = choose_method(seven, TrainConfig(), machine=T4)
    assert (found.student.quantization, found.train.method) == ("4bit", "qlora")
    assert not found.train.lora.merge  # merged in 16 bits, it could not be asked here
    assert trained_model_config(Path("out"), found.student, found.train).quantization == "4bit"
    assert base_model_config(seven, found.student, found.train).quantization == "4bit"
    assert found.line.startswith("full fine-tune needs 205.9 GB of 13.4 GB: ")
    with pytest.raises(
        UserError, match=r"does not fit in the memory of this GPU for training: LoRA r 16 on 4-bit weights with"
    ):
        choose_method(ModelConfig(model="Qwen/Qwen2.5-32B-Instruct"), TrainConfig(), machine=T4)


def test_what_fits_stays_as_it_was() -> None:
    train = TrainConfig(num_epochs=3, tokens_per_batch=2048)
    found = choose_method(ModelConfig(model="tiny:student"), train, machine=Machine("cpu", 4e9, 4e9, "fp32"))
    assert not found.changed
    assert found.train == train.model_copy(update={"method": "full"})
    lora = train.model_copy(update={"lora": LoraConfig(r=4)})
    adapted = choose_method(ModelConfig(model="tiny:student"), lora, machine=Machine("cpu", 4e9, 4e9, "fp32"))
    assert adapted.train == lora.model_copy(update={"method": "lora"})


def test_what_was_set_is_only_checked() -> None:
    with pytest.raises(UserError, match=r"full fine-tune with checkpointing and 8-bit AdamW.*--train.method auto"):
        choose_method(STUDENT, LONG.model_copy(update={"method": "full"}), machine=T4)
    adapters = TrainConfig(lora=LoraConfig(r=32), learning_rate=3e-4)
    with pytest.raises(UserError, match=r"LoRA r 32 with checkpointing.*--train.method qlora"):
        choose_method(ModelConfig(model="Qwen/Qwen2.5-7B-Instruct"), adapters, machine=T4)
    packed = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="4bit")
    found = choose_method(packed, adapters, machine=T4)
    assert (found.train.lora, found.train.learning_rate) == (LoraConfig(r=32), 3e-4)
    optimizer = TrainConfig(optim="adafactor", max_length=4096)
    assert choose_method(STUDENT, optimizer, machine=CARDS["24 GB"]).train.optim == "adafactor"
    with pytest.raises(UserError, match="remove one of the two"):
        choose_method(STUDENT, TrainConfig(method="full", lora=LoraConfig(r=8)), machine=T4)
    with pytest.raises(UserError, match="4bit weights cannot be trained"):
        choose_method(ModelConfig(model="tiny:student", quantization="4bit"), TrainConfig(), machine=T4)
    named = choose_method(STUDENT, TrainConfig(method="qlora"), machine=CARDS["80 GB"])
    assert (named.student.quantization, named.train.lora.r) == ("4bit", 16)


def test_the_host_must_hold_a_student_that_is_loaded_in_fp32() -> None:
    small = Machine("cuda", 80e9, 8e9, "bf16")
    found = choose_method(ModelConfig(model="Qwen/Qwen2.5-3B-Instruct"), TrainConfig(), machine=small)
    assert found.train.lora.r


def test_smaller_micro_batches_keep_a_steps_tokens_and_the_longest_row() -> None:
    train = TrainConfig(tokens_per_batch=8192, gradient_accumulation_steps=3, max_length=2048)
    tried = list(smaller_batches(train))
    assert [each.tokens_per_batch for each in tried] == [8192, 4096, 2048]
    assert {step_tokens(each) for each in tried} == {3 * 8192}
    assert with_batches(tried[2], 3000, 4).tokens_per_batch == 1500
    assert with_batches(tried[2], 3000, 4).gradient_accumulation_steps == 8
    assert with_batches(tried[0], 3000, 4).gradient_accumulation_steps == 4


def test_a_teacher_that_does_not_fit_is_refused_with_the_remedy() -> None:
    seven = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(UserError, match=r"does not fit this GPU: it needs 15.* use --teacher.quantization 8bit or"):
        check_answering(seven, machine=T4, new_tokens=512, role="teacher")
    check_answering(seven.model_copy(update={"quantization": "auto"}), machine=T4, new_tokens=512, role="teacher")
    big = ModelConfig(model="Qwen/Qwen2.5-72B-Instruct", quantization="auto")
    with pytest.raises(UserError, match=r"72B-Instruct in 4-bit weights does not fit.*openai:NAME"):
        check_answering(big, machine=T4, new_tokens=512, role="teacher")
    check_answering(big, machine=CARDS["80 GB"], new_tokens=512, role="teacher")
    whole = big.model_copy(update={"quantization": "none"})
    check_answering(whole, machine=CARDS["80 GB"], new_tokens=512, role="teacher", num_gpus=2)


def test_a_containers_limit_is_the_machines_memory(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000000\n")
    assert host_memory((str(limit), str(tmp_path / "absent"))) == 1_000_000_000
    limit.write_text("max\n")
    assert host_memory((str(limit),)) > 1e9


@pytest.mark.parametrize(
    ("machine", "preset"),
    [
        (T4, "qwen2.5"),
        (Machine("mps", 16e9, 16e9, "fp16"), "tiny"),  # no quantization on a Mac: 7B is 15 GB
        (Machine("mps", 64e9, 64e9, "fp16"), "qwen2.5"),
        (Machine("cuda", 4e9, 16e9, "fp16"), "tiny"),
        (Machine("cpu", 64e9, 64e9, "fp32"), "tiny"),
    ],
)
def test_real_sizes_are_begun_with_where_they_fit(machine: Machine, preset: str) -> None:
    for recipe in ("system1", "system2", "verified"):
        presets = importlib.import_module(f"distill_lab.recipes.{recipe}").PRESETS
        assert preset_for(presets, machine)[0] == preset


def test_a_run_keeps_its_method_and_refuses_a_machine_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(machine: Machine, name: str) -> tuple[ModelConfig, TrainConfig]:
        monkeypatch.setattr("distill_lab.planning.machine.this_machine", lambda: machine)
        monkeypatch.setattr("distill_lab.device.device_name", lambda device: name)
        with Run.open(tmp_path / "run", recipe="system2", config={}) as run:
            return fit(run, STUDENT, LONG, EngineConfig(), teacher=None, new_tokens=512)

    first = fitted(CARDS["24 GB"], "an A10")
    assert first[1].optim == "adamw_8bit"
    assert fitted(CARDS["80 GB"], "an H100") == first  # which alone would have trained without checkpointing
    with pytest.raises(UserError, match=r"laid out on an A10 \(full fine-tune needs .* GB here \(a T4\)"):
        fitted(T4, "a T4")
    recorded: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())["models"]
    (row,) = [value for key, value in recorded.items() if key.startswith("training ")]
    assert row["on"] == "an A10"
    assert row["train"]["optim"] == "adamw_8bit"
    assert 10e9 < row["needs_bytes"] < row["usable_bytes"] < 24e9


@pytest.mark.slow
def test_a_small_machine_trains_adapters_by_itself_and_leaves_a_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_model: Any
) -> None:
    """The real thing: a student whose full fine-tune does not fit is trained with adapters and merged."""
    student = ModelConfig(model=str(random_model(hidden=64, layers=2)))
    train = TrainConfig(max_steps=1, max_length=64, tokens_per_batch=1024, validation_fraction=0)
    checkpointed = train.model_copy(update={"gradient_checkpointing": True})
    usable = training_memory(shape_of(student), checkpointed, compute="fp32", gpu=False).total - 1
    monkeypatch.setattr(Machine, "usable", property(lambda self: usable))
    monkeypatch.setattr("distill_lab.planning.machine.this_machine", lambda: Machine("cpu", 0, 0, "fp32"))
    monkeypatch.setattr("distill_lab.planning.method.has_8bit_adamw", lambda machine: False)
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, toy_rows(8))
    with Run.open(tmp_path / "run", recipe="system1", config={}) as run:
        pipeline = Pipeline(run, engine=EngineConfig())
        fitted, settled = fit(run, student, train, pipeline.engine, teacher=None, new_tokens=512)
        out = pipeline.student(fitted, rows, settled, thinking=None)
    assert (settled.lora.r, settled.lora.merge, settled.method) == (16, True, "lora")
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert load_model(ModelConfig(model=str(out)))[0].num_parameters() == load_model(student)[0].num_parameters()
