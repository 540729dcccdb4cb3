"""Rows that are made on the way: a round is made when its first step begins, by the student as it is then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab.chat import Encoded
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.models.loading import load_model
from distill_lab.train.packing import Row
from distill_lab.train.plan import make_plan, training_arguments
from distill_lab.train.rounds import Rounds, known_rows, made_rows
from distill_lab.train.trainer import StudentTrainer
from tests.helpers import CROSS_ENTROPY

CONFIG = TrainConfig(
    dtype="fp32", learning_rate=1e-2, tokens_per_batch=64, gradient_accumulation_steps=2, logging_steps=1,
    validation_fraction=0,
)  # fmt: skip
PROMPT = [5, 6, 7]


def row(ids: list[int]) -> Row:
    return Row.from_encoded(Encoded(ids, [index >= len(PROMPT) for index in range(len(ids))]))


def numbered_rows(number: int, *, count: int = 30) -> list[Row]:
    return [row([*PROMPT, *[10 + number] * (3 + index % 9)]) for index in range(count)]


def ids_of(batch: list[list[Row]]) -> list[list[bytes]]:
    return [[each.id for each in bin_] for bin_ in batch]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_one_round_is_todays_plan(processes: int) -> None:
    rows = numbered_rows(0)
    plan = make_plan([len(each) for each in rows], CONFIG.model_copy(update={"max_steps": 4}), num_processes=processes)
    known = known_rows(rows, plan)
    made = made_rows(lambda number: rows, CONFIG, num_rounds=1, steps_per_round=4, num_processes=processes)
    assert (known.num_steps, known.num_batches) == (made.num_steps, made.num_batches) == (4, len(plan.batches))
    for number in range(known.num_batches):
        assert ids_of(known.batch(number)) == ids_of(made.batch(number))
        assert ids_of(known.batch(number)) == [[rows[index].id for index in bin_] for bin_ in plan.batches[number]]
    assert [known.tokens(step) for step in range(4)] == [made.tokens(step) for step in range(4)]
    assert sum(known.tokens(step) for step in range(4)) == plan.tokens_until[-1]


def test_rounds_have_their_own_rows_in_their_own_order() -> None:
    made: list[int] = []

    def make(number: int) -> list[Row]:
        made.append(number)
        return numbered_rows(0)

    rounds = made_rows(make, CONFIG, num_rounds=3, steps_per_round=2)
    assert (rounds.num_steps, rounds.num_batches) == (6, 12)
    assert made == []
    batches = [ids_of(rounds.batch(number)) for number in range(12)]
    assert made == [0, 1, 2]
    assert batches[:4] != batches[4:8] != batches[8:]
    # A training that is resumed in the second round never makes the first one.
    resumed = made_rows(make, CONFIG, num_rounds=3, steps_per_round=2)
    made.clear()
    assert [ids_of(resumed.batch(number)) for number in range(5, 12)] == batches[5:]
    assert made == [1, 2]


def trainer_of(student: Path, work: Path, rounds: Callable[[Any], Rounds]) -> tuple[StudentTrainer, Any]:
    model, _ = load_model(ModelConfig(model=str(student)), training=True)
    prepared = rounds(model)
    trainer = StudentTrainer(
        model,
        args=training_arguments(work, CONFIG, prepared.num_steps, validate=False),
        config=CONFIG,
        rounds=prepared,
        objective=CROSS_ENTROPY,
        on_log=lambda row: None,
    )
    return trainer, model


def test_a_round_is_written_by_the_student_as_it_is_when_the_round_begins(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    written: list[tuple[int, list[int], torch.Tensor]] = []
    trainer: StudentTrainer

    def rounds(model: Any) -> Rounds:
        def make(number: int) -> list[Row]:
            model.eval()
            ids = model.generate(
                input_ids=torch.tensor([PROMPT]), attention_mask=torch.ones(1, 3), max_new_tokens=8, do_sample=False,
                eos_token_id=None,
            )[0].tolist()  # fmt: skip
            model.train()
            written.append((trainer.state.global_step, ids, model.lm_head.weight.detach().clone()))
            return [row(ids), *numbered_rows(number)]

        return made_rows(make, CONFIG, num_rounds=3, steps_per_round=2)

    trainer, _ = trainer_of(random_model(hidden=32, layers=1), tmp_path / "work", rounds)
    trainer.train()
    assert [step for step, _, _ in written] == [0, 2, 4]
    assert trainer.state.global_step == 6
    assert trainer.state.epoch == pytest.approx(3)
    # Rows and weights of each round differ: what is sampled is the student of then, not the one of the start.
    assert len({tuple(ids) for _, ids, _ in written}) > 1
    assert not torch.equal(written[0][2], written[1][2])
    assert not torch.equal(written[1][2], written[2][2])
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 6
    trainer.release()


@pytest.mark.slow
def test_known_rows_in_one_round_train_the_same_weights(random_model: Callable[..., Path], tmp_path: Path) -> None:
    student = random_model(hidden=32, layers=1)
    rows = numbered_rows(0)
    plan = make_plan([len(each) for each in rows], CONFIG.model_copy(update={"max_steps": 3}))
    found = []
    for name, rounds in (
        ("known", known_rows(rows, plan)),
        ("made", made_rows(lambda number: rows, CONFIG, num_rounds=1, steps_per_round=3)),
    ):
        trainer, model = trainer_of(student, tmp_path / name, lambda model, rounds=rounds: rounds)
        trainer.train()
        found.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        trainer.release()
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())
