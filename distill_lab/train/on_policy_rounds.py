"""The rounds of an on-policy training: the student as it is now -> its rollouts, sealed -> rows for the next steps.

`student.train_model` calls it (`rounds.RoundSource`); `on_policy.py` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedTokenizerBase

from distill_lab.config import TrainConfig
from distill_lab.device import is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_json
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.train.checkpoints import OWN_TEXT
from distill_lab.train.loss_module import causal_model
from distill_lab.train.objectives import LossBatch
from distill_lab.train.own_text import MAX_PROMPTS, Scorer, measure_own_text
from distill_lab.train.packing import Row
from distill_lab.train.rollout_stats import OwnText, RoundStats
from distill_lab.train.rollouts import Asked, Rollouts, RolloutSettings, RowMaker
from distill_lab.train.rounds import Rounds, rounds_once
from distill_lab.train.teachers import ReadingTeacher, Teacher
from distill_lab.train.training_log import OnLog


class OnPolicyRounds:
    """Makes rounds of the model's own rollouts, and measures its own text before the first step and after the last."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        asked: Asked,
        settings: RolloutSettings,
        config: TrainConfig,
        teacher: Teacher,
        *,
        control_ids: Collection[int],
        known: np.ndarray,
        work: Path,
        num_rounds: int,
        on_log: OnLog,
        batch_size: int = 0,
    ) -> None:
        """control_ids, known: see `rollouts.RowMaker`. work: the folder in which rounds are sealed. batch_size: rollouts
        that are written at once; 0: as many as fit."""
        self.model, self.tokenizer, self.asked, self.settings, self.config = model, tokenizer, asked, settings, config
        self.teacher, self.work, self.num_rounds, self.on_log = teacher, work, num_rounds, on_log
        self.batch_size = batch_size
        self.stats: tuple[RoundStats, ...] = ()
        """Of all rounds, those before an interruption too; there after `finish`."""
        self.before: OwnText | None = None
        self.after: OwnText | None = None
        self._maker, self._pack_rows = RowMaker(control_ids, known), True
        self._engine: TransformersEngine | None = None
        self._collate: Callable[[list[list[Row]]], LossBatch] | None = None
        self._rollouts = Rollouts(
            asked.training, settings, work,
            engine=self._writer, rows=self._maker, seed=config.seed, on_note=self._note,
        )  # fmt: skip

    def rounds(self, *, pack_rows: bool) -> Rounds:
        """The rounds; none of them is made yet."""
        self._pack_rows = pack_rows
        steps = self.settings.steps_per_round
        return rounds_once(
            self._rows, self.config, num_rounds=self.num_rounds, steps_per_round=steps, pack_rows=pack_rows
        )

    def begin(self, collate: Callable[[list[list[Row]]], LossBatch]) -> None:
        """From now on rows can become batches."""
        self._collate = collate

    def finish(self) -> None:
        """Measure what the student writes now, and read the figures of all rounds.

        If memory or the server does not suffice, there is a note instead of figures: the student is trained.
        """
        if self.before is None:  # all steps were taken before an interruption
            self.before = self._own_text_before(is_first=False)
        try:
            self.after = self._own_text()
        except (UserError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, UserError) or is_out_of_memory(error)):
                raise
            self._note(f"the student's own text was not measured after the last step: {error}")
        found = (self._rollouts.stats(number) for number in range(self.num_rounds))
        self.stats = tuple(each for each in found if each is not None)

    def _rows(self, number: int) -> list[Row]:
        """The rows of a round, made by the student as it is now unless they were before an interruption."""
        if self.before is None:
            self.before = self._own_text_before(is_first=number == 0)
        rows = self._rollouts.rows(number)
        if isinstance(self.teacher, ReadingTeacher):
            self.teacher.read(rows, str(number))
        if (stats := self._rollouts.stats(number)) is not None:
            self._note(f"round {number + 1} of {self.num_rounds}: {stats}")
        return [row for row, _ in rows]

    def _writer(self) -> TransformersEngine:
        """The student as it is now. With adapters: the model beneath, whose layers have them."""
        if self._engine is None:
            model = causal_model(self.model)
            self._engine = TransformersEngine(model, self.tokenizer, batch_size=self.batch_size)
            if self._engine.note:
                self._note(f"the student: {self._engine.note}")
        return self._engine

    def _own_text_before(self, *, is_first: bool) -> OwnText | None:
        """As it was measured before the first step, in this call or before an interruption; None if that was damaged."""
        place = self.work / OWN_TEXT
        with suppress(OSError, ValueError):
            return TypeAdapter(OwnText).validate_json(place.read_bytes())
        found = self._own_text() if is_first else None
        if found is not None:
            write_json(place, asdict(found))
        return found

    def _own_text(self) -> OwnText | None:
        assert self._collate is not None, "the trainer has not begun"
        prompts = (self.asked.held_out or self.asked.training)[:MAX_PROMPTS]
        scorer = Scorer(self.teacher, self._maker, self._collate, self.config, self._pack_rows)
        return measure_own_text(self.model, self._writer(), prompts, self.settings.sampling, scorer)

    def _note(self, text: str) -> None:
        self.on_log({"note": text})
