"""The micro-batches of a training by number, from rows that are known before it starts or made on the way, round by round.

    rounds = known_rows(rows, make_plan([len(row) for row in rows], config))
    rounds = made_rows(sample, config, num_rounds=50, steps_per_round=4)       # sample(3) -> the rows of the fourth round

The trainer takes a step's micro-batches when the step before it is done. So the rows of a round can come from the student
as it is after the last step of the round before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from distill_lab.config import TrainConfig
from distill_lab.train.objectives import LossBatch
from distill_lab.train.packing import Row
from distill_lab.train.plan import Plan, make_plan, micro_batches, plan_once


@dataclass(frozen=True)
class Round:
    """Rows and how they are laid out in steps."""

    rows: Sequence[Row]
    plan: Plan


@dataclass
class Rounds:
    """All rounds of a training, which have the same number of steps and micro-batches. Only the newest is held."""

    make: Callable[[int], Round]
    """The round of a number from 0. A resumed training starts with the round it was in, which must be the same again."""
    num_rounds: int
    steps_per_round: int
    batches_per_round: int
    """Micro-batches of all processes."""
    batches_per_epoch: int
    """As in `Plan`; a round of made rows counts as an epoch."""
    _number: int = -1
    _round: Round | None = None
    _tokens: dict[int, int] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.num_rounds * self.steps_per_round

    @property
    def num_batches(self) -> int:
        """Micro-batches of the whole training and of all processes, which take them in turn."""
        return self.num_rounds * self.batches_per_round

    def batch(self, number: int) -> list[list[Row]]:
        """The bins of micro-batch `number`, each a list of rows. Makes the round it belongs to if it is a new one."""
        which, index = divmod(number, self.batches_per_round)
        current = self._at(which)
        return [[current.rows[row] for row in bin_] for bin_ in current.plan.batches[index]]

    def tokens(self, step: int) -> int:
        """Tokens of step `step`, from 0, of the newest round; of all processes, padding not counted."""
        which, index = divmod(step, self.steps_per_round)
        tokens_until = self._at(which).plan.tokens_until
        return int(tokens_until[index + 1] - tokens_until[index])

    @property
    def num_tokens(self) -> int:
        """Tokens of the rounds that were made so far, padding not counted."""
        return sum(self._tokens.values())

    def _at(self, number: int) -> Round:
        if self._round is None or number != self._number:
            self._round, self._number = self.make(number), number
            self._tokens[number] = int(self._round.plan.tokens_until[-1])
        return self._round


class RoundSource(Protocol):
    """Where the rounds of a training come from whose rows are made on the way (`student.train_model`)."""

    def rounds(self, *, pack_rows: bool) -> Rounds:
        """Called once. pack_rows: whether several rows may share a bin."""
        ...

    def begin(self, collate: Callable[[list[list[Row]]], LossBatch]) -> None:
        """Called when the loss is installed, before the first round. collate: as the trainer makes its batches."""

    def finish(self) -> None:
        """Called after the last step, with the student as it is then, whose checkpoint is on the disk."""


def known_rows(rows: Sequence[Row], plan: Plan) -> Rounds:
    """A training whose rows are all known: one round, laid out by `plan`."""
    found = Rounds(lambda number: Round(rows, plan), 1, plan.num_steps, len(plan.batches), plan.batches_per_epoch)
    found.tokens(0)
    return found


def made_rows(
    make: Callable[[int], Sequence[Row]],
    config: TrainConfig,
    *,
    num_rounds: int,
    steps_per_round: int,
    pack_rows: bool = True,
    num_processes: int = 1,
) -> Rounds:
    """A training whose rows are made on the way: `make(round)` is called when the round's first step is about to begin.

    Every round takes `steps_per_round` steps of the size that `config` says, and repeats its rows if they are too few.
    `make` must return the same rows again for the same round, in every process and when the training is resumed.
    """
    steps = config.model_copy(update={"max_steps": steps_per_round})

    def planned(number: int) -> Round:
        rows = make(number)
        lengths = [len(row) for row in rows]
        plan = make_plan(lengths, steps, pack_rows=pack_rows, num_processes=num_processes, round_number=number)
        return Round(rows, plan)

    batches_per_step = micro_batches(config, num_processes) * num_processes
    per_epoch = steps_per_round * config.gradient_accumulation_steps
    return Rounds(planned, num_rounds, steps_per_round, steps_per_round * batches_per_step, per_epoch)


def rounds_once(
    make: Callable[[int], Sequence[Row]],
    config: TrainConfig,
    *,
    num_rounds: int,
    steps_per_round: int,
    pack_rows: bool = True,
) -> Rounds:
    """As `made_rows`, for rounds whose rows are each taken exactly once, however many tokens they have; in one process."""

    def planned(number: int) -> Round:
        rows = make(number)
        lengths = [len(row) for row in rows]
        plan = plan_once(lengths, config, num_steps=steps_per_round, pack_rows=pack_rows, round_number=number)
        return Round(rows, plan)

    per_round = steps_per_round * config.gradient_accumulation_steps
    return Rounds(planned, num_rounds, steps_per_round, per_round, per_round)
