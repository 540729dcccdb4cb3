"""A teacher with another tokenizer: rows paired by their text, the loss of plain transformers, training that follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import NoData, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.models.token_bytes import token_bytes
from distill_lab.planning.preflight import check_training
from distill_lab.train.aligned_teacher import aligned_teacher, make_pairing
from distill_lab.train.objectives import Head, LossBatch, LossOutput, load_objective
from distill_lab.train.packing import Row
from distill_lab.train.paired_rows import NOTHING, OTHER_TURNS, REFUSED, TOO_LONG, Pairing, read_paired_rows
from distill_lab.train.student import train_model, train_student
from tests.helpers import IN_THREE_PARTS, limited, toy_rows
from tests.other_tokenizer import KINDS, write_teacher

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    dtype="fp32", tokens_per_batch=256, learning_rate=1e-2, validation_fraction=0.25, objective="chunk_likelihood"
)


@pytest.fixture(scope="module")
def student(random_model: Callable[..., Path]) -> ModelConfig:
    return ModelConfig(model=str(random_model(hidden=32, layers=1)))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        kind: ModelConfig(model=str(write_teacher(folder / str(number), kind)), dtype="fp32")
        for number, kind in enumerate(KINDS)
    }


@pytest.fixture(scope="module")
def training_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    rows = toy_rows(20)
    rows[3]["completion"][0]["content"] = "naïve Größe 今天 🙂  12,345"
    turns = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Now it is green."}]
    rows[7]["completion"] += turns
    write_jsonl(path, rows)
    return path


def pairing_of(
    teacher: ModelConfig, student: ModelConfig, path: Path, *, thinking: bool | None = False
) -> tuple[Pairing, list[Row]]:
    tokenizer = load_tokenizer(student)
    pairing = make_pairing(teacher, tokenizer, student_name="student", thinking=thinking)
    data = read_paired_rows(path, tokenizer, pairing, max_length=512, validation_fraction=0, seed=0)
    return pairing, data.training


def naive_kd(
    models: list[Any], tokenizers: list[PreTrainedTokenizerBase], pairing: Pairing, rows: list[Row]
) -> tuple[float, float, int]:
    """Sums of kd and ce, and loss positions: row by row in float64, chunks by sets of byte counts, tokens by their names."""
    names = [token_bytes(tokenizer) for tokenizer in tokenizers]
    ends = pairing.ends
    common = sorted(pairing.comparison.shared.student_S.tolist())
    columns = [torch.tensor(common), torch.tensor([int(pairing.comparison.shared.teacher_of_V[id]) for id in common])]
    kd, ce, count = 0.0, 0.0, 0
    for row in rows:
        sides = [row, *pairing.pairs[row.id].teacher]
        log_probs, labels = [], []
        for model, parts in ((models[0], sides[:1]), (models[1], sides[1:])):
            outputs = [model(input_ids=torch.from_numpy(part.input_ids[None]).long()).logits[0] for part in parts]
            masks = [torch.from_numpy(part.loss_mask) for part in parts]
            log_probs.append(
                torch.cat([out[mask].double().log_softmax(-1) for out, mask in zip(outputs, masks, strict=True)])
            )
            labels.append(np.concatenate([part.target[part.loss_mask] for part in parts]).tolist())
        own = [
            each.gather(1, torch.tensor(label)[:, None])[:, 0] for each, label in zip(log_probs, labels, strict=True)
        ]
        ce -= own[0].sum().item()
        count += len(own[0])
        # End tokens count as one byte that no text has.
        lengths = [
            [1 if id == end else len(each[id]) for id in label]
            for label, each, end in zip(labels, names, ends, strict=True)
        ]
        bounds = [list(accumulate(each, initial=0)) for each in lengths]
        assert bounds[0][-1] == bounds[1][-1]
        cuts = sorted(set(bounds[0]) & set(bounds[1]))
        for left, right in pairwise(cuts):
            places = [slice(each.index(left), each.index(right)) for each in bounds]
            tokens = [label[place] for label, place in zip(labels, places, strict=True)]
            end = tokens[0] == [ends[0]] and tokens[1] == [ends[1]]
            single = len(tokens[0]) == len(tokens[1]) == 1
            if end or (single and pairing.comparison.shared.teacher_of_V[tokens[0][0]] == tokens[1][0]):
                coins = []
                for side in (0, 1):
                    probs = log_probs[side][places[side]][0].exp()
                    inside = probs[columns[side]]
                    coins.append(torch.cat([inside, (1 - inside.sum()).clamp_min(0)[None]]))
                kd += torch.xlogy(coins[1], coins[1] / coins[0].clamp_min(1e-300)).sum().item()
                continue
            b, a = (-each[place].sum() + 1e-5 for each, place in zip(own, places, strict=True))
            p, q = torch.exp(-a / 100), torch.exp(-b / 100)
            kd += (100 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())).item()
    return kd, ce, count


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_loss_is_that_of_plain_transformers_row_by_row(
    kind: str, student: ModelConfig, teachers: dict[str, ModelConfig], training_rows: Path, tmp_path: Path
) -> None:
    logs: list[dict[str, Any]] = []
    settings = {"max_steps": 1, "logging_steps": 1, "validation_fraction": 0.0, "tokens_per_batch": 4096}
    config = CONFIG.model_copy(update=settings | {"teacher": teachers[kind], "objective_settings": ("ce_weight=0.25",)})
    with torch.enable_grad():
        train_student(student, training_rows, tmp_path / "student", config, thinking=False, on_log=logs.append)
    line = next(row for row in logs if "loss" in row)
    pairing, rows = pairing_of(teachers[kind], student, training_rows)
    # Mixtures of experts have no kernel for float64.
    exact = torch.float32 if "experts" in kind else torch.float64
    models = [
        AutoModelForCausalLM.from_pretrained(each.model, dtype=dtype)
        for each, dtype in ((student, torch.float64), (teachers[kind], exact))
    ]
    tokenizers = [load_tokenizer(each) for each in (student, teachers[kind])]
    kd, ce, count = naive_kd(models, tokenizers, pairing, rows)
    assert line["metrics"]["kd"] == pytest.approx(kd / count, rel=2e-4)
    assert line["metrics"]["ce"] == pytest.approx(ce / count, rel=1e-4)
    assert line["loss"] == pytest.approx((0.75 * kd + 0.25 * ce) / count, rel=2e-4)
    assert kd / count > 0.3
    # What the teacher reads is its own template, and the log-likelihood of its answer is what the chunks have.
    row = rows[0]
    [read] = pairing.pairs[row.id].teacher
    messages = [*toy_rows(1)[0]["prompt"], *toy_rows(1)[0]["completion"]]
    whole = tokenizers[1].apply_chat_template(messages, tokenize=True, return_dict=False)
    assert [*read.input_ids.tolist(), int(read.target[-1])] == whole[:-1]  # but for the newline at the end
    assert tokenizers[1].decode(read.target[read.loss_mask]) == "The colour is red<end_of_turn>"
    notes = [row["note"] for row in logs if "note" in row]
    assert any("trained tokens" in note and "chunks of several tokens" in note for note in notes)


@pytest.mark.parametrize("kind", KINDS)
def test_training_comes_nearer_to_teachers_of_other_kinds(
    kind: str, student: ModelConfig, teachers: dict[str, ModelConfig], training_rows: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(r=8) if kind == "gemma3" else LoraConfig()
    changes = {"num_epochs": 8, "teacher": teachers[kind], "lora": lora, "learning_rate": 5e-2 if lora.r else 1e-2}
    result = train_student(student, training_rows, tmp_path / "s", CONFIG.model_copy(update=changes), thinking=False)
    assert result.validation_loss_before is not None
    assert result.validation_loss_after is not None
    assert result.validation_loss_after < (0.97 if lora.r else 0.9) * result.validation_loss_before


def test_an_interrupted_training_and_one_out_of_memory_end_with_the_same_weights(
    student: ModelConfig, teachers: dict[str, ModelConfig], training_rows: Path, tmp_path: Path
) -> None:
    teacher = teachers["untied head with more rows"]
    config = IN_THREE_PARTS.model_copy(
        update={"teacher": teacher, "objective": "chunk_likelihood", "num_epochs": 4, "save_steps": 2}
    )
    plain = load_objective("chunk_likelihood")

    def train(name: str, *, most: int = 10_000, stop: int = 0) -> dict[str, torch.Tensor]:
        limit = limited(most, calls=[])

        def objective(hidden_NH: torch.Tensor, head: Head, batch: LossBatch) -> LossOutput:
            limit(hidden_NH.detach(), replace(head, grad_scale=None), replace(batch, targets=None))
            return plain(hidden_NH, head, batch)

        def on_log(row: dict[str, Any]) -> None:
            if stop and row.get("step") == stop:
                raise KeyboardInterrupt

        model, tokenizer = load_model(student, training=True)
        pairing = make_pairing(teacher, tokenizer, student_name="student", thinking=False)
        data = read_paired_rows(training_rows, tokenizer, pairing, max_length=512, validation_fraction=0, seed=0)
        live = aligned_teacher(teacher, pairing, tokens_per_batch=config.tokens_per_batch)
        train_model(
            model, tokenizer, data, tmp_path / name, config, key="k", objective=objective, teacher=live, on_log=on_log
        )
        return load_file(tmp_path / name / "model.safetensors")

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("resumed", stop=3)
    assert not (tmp_path / "resumed").exists()
    resumed, halved = train("resumed"), train("halved", most=60)
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
        torch.testing.assert_close(halved[name], weight, rtol=1e-4, atol=2e-5)


def test_packed_rows_and_passes_of_any_size_say_the_same(
    student: ModelConfig, teachers: dict[str, ModelConfig], training_rows: Path
) -> None:
    from distill_lab.train.packing import collate

    pairing, rows = pairing_of(teachers["gemma3"], student, training_rows)
    signals = []
    for tokens, bins in ((40, [[row] for row in rows]), (4096, [rows[:7], rows[7:]])):
        teacher = aligned_teacher(teachers["gemma3"], pairing, tokens_per_batch=tokens)
        assert teacher.rows_stay_apart()
        teacher.prepare(flat=False)
        signals.append(teacher.signal(collate(bins)))
    said = [signal.at(signal.parts(10_000)[0]) for signal in signals]
    for name in ("labels_D", "chunk_D", "chunk_C", "same_K"):
        assert torch.equal(getattr(said[0], name), getattr(said[1], name)), name
    torch.testing.assert_close(said[0].logits_DW, said[1].logits_DW, rtol=1e-4, atol=1e-4)
    empty = teacher.signal(collate([]))
    assert empty.at(empty.parts(10)[0]).labels_D.shape == (0,)
    assert said[0].same_K.sum() > 20
    assert (~said[0].same_K).sum() > 20


def test_rows_are_paired_answer_by_answer_and_what_cannot_be_is_counted(
    student: ModelConfig, teachers: dict[str, ModelConfig], tmp_path: Path
) -> None:
    teacher = teachers["gemma3"]
    path = tmp_path / "rows.jsonl"
    rows = toy_rows(6)
    rows[0]["prompt"].insert(0, {"role": "system", "content": "Be short."})
    rows[1]["completion"][0]["content"] = "long " * 300
    rows[2]["completion"] += [
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "skipped", "weight": 0},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "It is red"},
    ]
    rows[3]["completion"][0]["content"] = "<|im_end|> is a token"  # text, not the end of a turn
    write_jsonl(path, rows)
    tokenizer = load_tokenizer(student)
    pairing = make_pairing(teacher, tokenizer, student_name="student", thinking=None)
    data = read_paired_rows(path, tokenizer, pairing, max_length=4096, validation_fraction=0, seed=0)
    assert data.dropped == {REFUSED: 1, TOO_LONG: 1}
    assert "System role not supported" in pairing.first_refused
    found = pairing.agreement()
    assert (found.teacher, found.student, found.texts) == (teacher.model, "student", 5)
    assert found.student_tokens == sum(int(row.loss_mask.sum()) for row in data.training)
    assert found.student_tokens == found.same + found.parts + sum(found.dropped.values())
    # Only the student writes an empty think block before each answer.
    [(reason, number)] = found.dropped.items()
    assert reason == "the teacher's chat template has other text here"
    assert number % found.texts == 0
    assert found.compared_bytes < found.text_bytes
    for row in data.training:
        pair = pairing.pairs[row.id]
        assert len(pair.chunk_N) == row.loss_mask.sum()
        assert len(pair.chunk_D) == sum(int(each.loss_mask.sum()) for each in pair.teacher)
        assert pair.same_K[-1]  # the end token
    # A teacher that begins a new sequence for each turn, as Qwen3 does, has the same answers.
    both = Pairing(tokenizer, tokenizer, thinking=None, names=("a", "b"))
    turns = read_paired_rows(path, tokenizer, both, max_length=4096, validation_fraction=0, seed=0)
    assert turns.num_rows == 6
    assert both.agreement().same == both.agreement().student_tokens
    row = turns.training[0]
    assert (
        both.add([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}], [row, row]) == OTHER_TURNS
    )
    encoded = Row(row.input_ids, row.target, row.loss_mask)
    alone = encoded.target == both.ends[0]
    only_end = Row(row.input_ids, np.where(alone, row.target, 7), alone & row.loss_mask)
    assert both.add([{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}], [only_end]) == NOTHING

    write_jsonl(path, rows[:1])
    with pytest.raises(
        NoData, match=r"the teacher's chat template refuses it.*refuses first: .*System role not supported"
    ):
        pairing_of(teacher, student, path)


def test_what_does_not_fit_is_refused_by_name(student: ModelConfig, teachers: dict[str, ModelConfig]) -> None:
    teacher = teachers["gemma3"]
    check_training(student, CONFIG.model_copy(update={"teacher": teacher}))
    for objective in ("forward_kl", "reverse_kl", "jsd", "acceptance"):
        config = CONFIG.model_copy(update={"teacher": teacher, "objective": objective})
        with pytest.raises(UserError, match=r"different tokenizers: .*`distill logits --objective chunk_likelihood`"):
            check_training(student, config)
    with pytest.raises(UserError, match="openai:big: a server gives tokens, not distributions"):
        check_training(student, CONFIG.model_copy(update={"teacher": ModelConfig(model="openai:big")}))
    with pytest.raises(UserError, match=r"compares the student with a teacher; give --train\.teacher\.model"):
        check_training(student, CONFIG)
