"""A live teacher: its logits are those it gives each row alone, and training follows them on any number of processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.models.token_bytes import refuse_other_ids, token_bytes
from distill_lab.planning.preflight import check_training
from distill_lab.run import fingerprint
from distill_lab.train import loss_module
from distill_lab.train.objectives import Head, LossBatch, LossOutput, load_objective
from distill_lab.train.packing import collate
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_model, train_student, training_inputs
from distill_lab.train.teachers import LiveTeacher, live_teacher
from tests.helpers import IN_THREE_PARTS, limited, toy_rows
from tests.train.test_packing import build, rows

pytestmark = pytest.mark.slow

MORE_ROWS = 128
"""Rows of a teacher's head beyond the student's, as Qwen2.5-7B's 152,064 are 128 more than 0.5B's."""


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(model=str(random_model(hidden=32, layers=1)))


@pytest.fixture(scope="module")
def teacher(random_model: Callable[..., Path]) -> ModelConfig:
    """Another width, an untied head with more rows, and weights large enough for distributions that are far from even."""
    folder = random_model(
        hidden=64, layers=2, seed=7, tie_word_embeddings=False, initializer_range=0.2,
        vocab_size=len(load_tokenizer(ModelConfig(model="tiny:teacher"))) + MORE_ROWS,
    )  # fmt: skip
    return ModelConfig(model=str(folder), dtype="fp32")


@pytest.fixture(scope="module")
def training_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows(24))
    return path


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "granite", "cohere"])
def test_logits_are_those_of_each_row_alone(kind: str, flat: bool) -> None:
    model = build(kind, tie_word_embeddings=False)
    encoded, packed = rows(6)
    bins = [[packed[3], packed[0]], [packed[5], packed[1]]]
    teacher = LiveTeacher(model, num_ids=97)
    teacher.prepare(flat=flat)
    signal = teacher.signal(collate(bins, flat=flat))
    assert signal.num_ids == 97
    expected = torch.cat(
        [
            model(input_ids=torch.tensor([encoded[index].input_ids[:-1]])).logits[0][torch.from_numpy(row.loss_mask)]
            for index, row in ((3, packed[3]), (0, packed[0]), (5, packed[5]), (1, packed[1]))
        ]
        if not flat
        else [each[torch.from_numpy(row.loss_mask)] for row, each in _alone(kind, encoded, packed, (3, 0, 5, 1))]
    )
    size = len(expected)
    found = torch.cat([signal.at(slice(start, start + 5)).clone() for start in range(0, size, 5)])
    torch.testing.assert_close(found, expected[:, :97].detach(), rtol=1e-3, atol=2e-3)
    assert signal.at(slice(size, size + 5)).shape == (0, 97)


def test_a_teacher_that_cannot_keep_rows_apart_reads_one_at_a_time() -> None:
    """A student on a CPU with bf16 has all rows in one line even so."""
    encoded, packed = rows(4)
    model, teacher = build("qwen3"), LiveTeacher(build("qwen3"), num_ids=101)
    teacher._row_by_row = True
    found = teacher.signal(collate([packed], flat=True)).at(slice(0, 999))
    alone = [model(input_ids=torch.tensor([each.input_ids[:-1]])).logits[0] for each in encoded]
    expected = torch.cat([each[torch.from_numpy(row.loss_mask)] for row, each in zip(packed, alone, strict=True)])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def _alone(kind: str, encoded: list[Any], packed: list[Any], which: tuple[int, ...]) -> list[tuple[Any, torch.Tensor]]:
    """The same model once more: one that attends row by row takes no other batches."""
    model = build(kind, tie_word_embeddings=False)
    return [(packed[i], model(input_ids=torch.tensor([encoded[i].input_ids[:-1]])).logits[0]) for i in which]


def one_step(student: ModelConfig, teacher: ModelConfig, path: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """What the first step logs."""
    logs: list[dict[str, Any]] = []
    config = TrainConfig(
        dtype="fp32", tokens_per_batch=4096, max_steps=1, logging_steps=1, validation_fraction=0, teacher=teacher, **settings
    )  # fmt: skip
    train_student(student, path, out, config, on_log=logs.append)
    return next(row for row in logs if "loss" in row)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl"])
def test_the_loss_is_that_of_plain_transformers_and_kd_and_ce_are_logged_apart(
    student: ModelConfig, teacher: ModelConfig, training_rows: Path, tmp_path: Path, objective: str
) -> None:
    settings = {"objective": objective, "objective_settings": ("ce_weight=0.25",)}
    line = one_step(student, teacher, training_rows, tmp_path / "student", **settings)
    models = [AutoModelForCausalLM.from_pretrained(each.model, dtype=torch.float64) for each in (student, teacher)]
    tokenizer = load_tokenizer(student)
    data = read_rows(training_rows, tokenizer, max_length=512, validation_fraction=0, seed=0).training
    kd, ce, count = 0.0, 0.0, 0
    for row in data:
        with torch.no_grad():
            logits = [model(input_ids=torch.from_numpy(row.input_ids[None]).long()).logits[0] for model in models]
        shared = logits[0].shape[1]
        assert logits[1].shape[1] == shared + MORE_ROWS
        log_q, log_p = (each[torch.from_numpy(row.loss_mask), :shared].log_softmax(-1) for each in logits)
        left, right = (log_p, log_q) if objective == "forward_kl" else (log_q, log_p)
        kd += (left.exp() * (left - right)).sum().item()
        labels = torch.from_numpy(row.target[row.loss_mask]).long()
        ce -= log_q.gather(1, labels[:, None]).sum().item()
        count += len(labels)
    assert line["metrics"]["kd"] == pytest.approx(kd / count, rel=1e-4)
    assert line["metrics"]["ce"] == pytest.approx(ce / count, rel=1e-4)
    assert line["loss"] == pytest.approx((0.75 * kd + 0.25 * ce) / count, rel=1e-4)
    assert kd / count > 0.5


def test_training_comes_nearer_to_the_teacher_also_as_adapters(
    student: ModelConfig, teacher: ModelConfig, training_rows: Path, tmp_path: Path
) -> None:
    """And the frozen head of a student with adapters costs it nothing but its own gradient."""
    for name, lora, rate, most in (("full", LoraConfig(), 1e-2, 0.9), ("adapters", LoraConfig(r=8), 5e-2, 0.99)):
        config = TrainConfig(
            dtype="fp32", tokens_per_batch=256, num_epochs=12, learning_rate=rate, validation_fraction=0.2, lora=lora,
            objective="forward_kl", teacher=teacher,
        )  # fmt: skip
        result = train_student(student, training_rows, tmp_path / name, config)
        assert result.validation_loss_before is not None
        assert result.validation_loss_after is not None
        assert result.validation_loss_after < most * result.validation_loss_before, name


def test_memory_that_runs_out_replays_the_teacher_too(
    student: ModelConfig, teacher: ModelConfig, training_rows: Path, tmp_path: Path
) -> None:
    plain = load_objective("forward_kl")

    def train(name: str, most: int) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        limit = limited(most, calls=[])

        def objective(hidden_NH: torch.Tensor, head: Head, batch: LossBatch) -> LossOutput:
            limit(hidden_NH.detach(), replace(head, grad_scale=None), replace(batch, targets=None))
            return plain(hidden_NH, head, batch)

        model, tokenizer = load_model(student, training=True)
        data = read_rows(training_rows, tokenizer, max_length=512, validation_fraction=0, seed=0)
        live = live_teacher(
            teacher, tokenizer, model.config.get_text_config().vocab_size, data.training, student_name="student"
        )
        logs: list[dict[str, Any]] = []
        train_model(
            model, tokenizer, data, tmp_path / name, IN_THREE_PARTS, key="k", objective=objective, teacher=live,
            on_log=logs.append,
        )  # fmt: skip
        return load_file(tmp_path / name / "model.safetensors"), logs

    whole, before = train("whole", 10_000)
    halved, after = train("halved", 60)
    assert any("out of memory" in row.get("note", "") for row in after)
    assert not any("out of memory" in row.get("note", "") for row in before)
    for name, weight in whole.items():
        torch.testing.assert_close(halved[name], weight, rtol=1e-4, atol=2e-5)


def test_two_processes_train_what_one_trains(
    student: ModelConfig, teacher: ModelConfig, training_rows: Path, tmp_path: Path
) -> None:
    found, metrics = {}, {}
    for processes in (1, 2):
        logs: list[dict[str, Any]] = []
        config = TrainConfig(
            dtype="fp32", learning_rate=1e-3, tokens_per_batch=256, gradient_accumulation_steps=2, logging_steps=1,
            validation_fraction=0.2, num_processes=processes, objective="jsd", teacher=teacher,
        )  # fmt: skip
        out = tmp_path / str(processes)
        train_student(student, training_rows, out, config, on_log=logs.append)
        found[processes] = load_file(out / "model.safetensors")
        metrics[processes] = [row["metrics"]["kd"] for row in logs if "loss" in row]
    assert metrics[2] == pytest.approx(metrics[1], rel=1e-4)
    for name, weight in found[1].items():
        torch.testing.assert_close(found[2][name], weight, rtol=1e-3, atol=2e-5)


def test_a_teacher_in_4_bits(student: ModelConfig, training_rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    small = {"objective": "forward_kl"}
    plain = one_step(student, ModelConfig(model="tiny:teacher", dtype="fp32"), training_rows, tmp_path / "a", **small)
    packed = ModelConfig(model="tiny:teacher", quantization="4bit")
    line = one_step(student, packed, training_rows, tmp_path / "b", **small)
    assert line["loss"] == pytest.approx(plain["loss"], rel=0.2)
    assert line["loss"] != plain["loss"]


def test_what_cannot_teach_is_refused_before_anything_is_loaded(
    student: ModelConfig, teacher: ModelConfig, tmp_path: Path
) -> None:
    def config(**settings: Any) -> TrainConfig:
        return TrainConfig(**({"objective": "forward_kl", "teacher": teacher} | settings))

    cases = {
        r"forward_kl compares the student with a teacher; give --train\.teacher": config(teacher=ModelConfig(model="")),
        "cross_entropy reads no teacher, but train.teacher is": config(objective="cross_entropy"),
        "openai:big: a server gives tokens, not distributions": config(teacher=ModelConfig(model="openai:big")),
        "no/such": config(teacher=ModelConfig(model="no/such")),
    }
    for message, wrong in cases.items():
        for check in (
            lambda wrong=wrong: check_training(student, wrong),
            lambda wrong=wrong: train_student(student, tmp_path / "no rows", tmp_path / "student", wrong),
        ):
            with pytest.raises(UserError, match=message):
                check()
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_other_ids_is_refused_by_the_first_of_them(
    student: ModelConfig, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(random_model(hidden=32, layers=1), other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    # Two tokens change places.
    vocabulary = load_tokenizer(student).get_vocab()
    left, right = f'"g": {vocabulary["g"]},', f'"h": {vocabulary["h"]},'
    assert left in text
    assert right in text
    text = text.replace(left, f'"g": {vocabulary["h"]},').replace(right, f'"h": {vocabulary["g"]},')
    (other / "tokenizer.json").write_text(text, encoding="utf-8")
    config = TrainConfig(objective="forward_kl", teacher=ModelConfig(model=str(other)))
    with pytest.raises(
        UserError, match=r"different tokenizers: id \d+ is b'[gh]' in one and b'[gh]' in the other; 2 of"
    ):
        check_training(student, config)


def test_rows_with_a_token_that_the_teacher_lacks_are_refused(
    student: ModelConfig, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As <think> of a Qwen3 student is unknown to a Qwen2.5 teacher, whose head has a row for it that nothing trained."""
    more = tmp_path / "more"
    size = len(load_tokenizer(student)) + 8
    shutil.copytree(random_model(hidden=32, layers=1, vocab_size=size), more)
    tokenizer = AutoTokenizer.from_pretrained(more)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<note>"]})
    tokenizer.save_pretrained(more)
    path = tmp_path / "rows.jsonl"
    (more / "chat_template.jinja").write_text("<note>" + tokenizer.chat_template)
    write_jsonl(path, toy_rows(12))
    config = TrainConfig(objective="forward_kl", teacher=student, dtype="fp32", max_steps=1)
    # The teacher's tokenizer is inside the student's, which alone is no reason.
    check_training(ModelConfig(model=str(more)), config)
    with pytest.raises(UserError, match=r"12 of 12 training rows have the student's token '<note>'"):
        train_student(ModelConfig(model=str(more)), path, tmp_path / "student", config)


def test_the_teacher_is_in_the_key(student: ModelConfig, teacher: ModelConfig, training_rows: Path) -> None:
    def key(config: TrainConfig) -> str:
        return fingerprint(training_inputs(student, training_rows, config, thinking=None))

    live = TrainConfig(objective="forward_kl", teacher=teacher)
    assert len({key(TrainConfig()), key(live), key(TrainConfig(objective="forward_kl", teacher=student))}) == 3
    assert "teacher" not in TrainConfig().model_dump()
    assert TrainConfig(**live.model_dump()).teacher == teacher


def test_the_student_still_generates_and_its_logits_are_not_the_teachers() -> None:
    model, other = build("qwen3"), build("qwen2")
    _, packed = rows(3)
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    loss_module.install(model, load_objective("reverse_kl"), teacher=LiveTeacher(other, num_ids=101))
    output = model(collate([packed]))
    assert output.total.item() > 0
    assert set(output.metrics) == {"kd", "ce"}
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    output.total.backward()
    assert all(weight.grad is None for weight in other.parameters())


def test_qwens_ids_are_bytes_and_2_5_is_inside_3(shared_data: Path) -> None:
    found = {
        name: token_bytes(AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name))
        for name in ("qwen2.5", "qwen3", "gpt-neox-20b")
    }
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2.5")
    text = "Größe: 3.5 m², naïve — 今天 🙂\n\tx = 1"
    assert b"".join(found["qwen2.5"][id] for id in tokenizer.encode(text)) == text.encode()
    assert len(found["qwen2.5"]) == len(tokenizer)
    refuse_other_ids(found["qwen3"], found["qwen2.5"], num_ids=151_936, names=("a", "b"))
    assert all(found["qwen3"][id] == name for id, name in found["qwen2.5"].items())
    with pytest.raises(UserError, match="the teacher neox and the student qwen have different tokenizers"):
        refuse_other_ids(found["gpt-neox-20b"], found["qwen2.5"], num_ids=50_432, names=("neox", "qwen"))
