"""What happens around the steps of a training: the first validation loss, whole log windows, sealed checkpoints.

The events of `transformers.Trainer` -> calls of `StudentTrainer`, and checkpoints on the disk that are sealed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.checkpoints import remove_all_but_newest, seal
from distill_lab.train.validation import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

NUM_CHECKPOINTS = 2
"""Kept while training: should the newest be damaged, there is one before it."""


class Hooked(Protocol):
    """What the hooks need of the trainer (`trainer.StudentTrainer`)."""

    config: TrainConfig
    accelerator: Accelerator
    validation: Validation
    in_optimizer: bool
    bf16_passes: Bf16Passes | None
    saves_last: bool

    def begin_log(self) -> None:
        """Start the training log, or go on with it."""

    def start_clock(self) -> None:
        """Count speed from here."""

    def evaluate(self) -> dict[str, float]:
        """The validation loss."""
        ...


class Hooks(TrainerCallback):
    """What happens around the steps: the first validation loss, whole log windows, sealed checkpoints."""

    def __init__(self, trainer: Hooked) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin the log, and take the first validation loss unless training goes on from a checkpoint."""
        self.trainer.begin_log()
        self.on_optimizer_step(args, state, control)  # weights may have come from a checkpoint
        if state.global_step == 0 and self.trainer.validation.batches:
            self.trainer.evaluate()
        self.trainer.start_clock()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Know that memory which runs out from here on is the optimizer's."""
        self.trainer.in_optimizer = True

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Round the new weights for the passes that compute in bf16."""
        self.trainer.in_optimizer = False
        if self.trainer.bf16_passes is not None:
            self.trainer.bf16_passes.refresh()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Log before anything is saved, and write no checkpoint that nobody would read."""
        finished = state.global_step >= state.max_steps
        # A log window never spans a checkpoint: what was logged before an interruption and after it adds up.
        if control.should_save or finished:
            control.should_log = True
        # The student is saved next, and its checkpoint would be deleted at once: 12 bytes a weight to write and check.
        # Adapters are small, and what follows may be a merge, which needs far more memory. What measures the student before
        # it is saved may fail or take long, too.
        if finished and not self.trainer.config.lora.r and not self.trainer.saves_last:
            control.should_save = False
        if control.should_save:
            activity.report(f"saving a checkpoint after step {state.global_step}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Seal the checkpoint when all processes have written theirs, and remove older ones."""
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            assert args.output_dir is not None
            work = Path(args.output_dir)
            seal(work / f"checkpoint-{state.global_step}")
            remove_all_but_newest(work, NUM_CHECKPOINTS)
