"""The training loop: `transformers.Trainer` with packed batches, a loss that is a sum, and checkpoints that can be trusted.

The micro-batches of a training (`rounds.py`) -> steps, each loss divided by the loss positions of its whole step -> the
model on disk. `student.train_model` is the way in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from distill_lab.config import TrainConfig
from distill_lab.errors import UserError
from distill_lab.train import loss_module, saving
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.hooks import Hooks
from distill_lab.train.memory_replay import ReplayingTrainer
from distill_lab.train.metric_sums import MetricSums
from distill_lab.train.objectives import LossBatch, LossOutput, Objective
from distill_lab.train.packing import Row, collate
from distill_lab.train.rounds import Rounds
from distill_lab.train.teachers import Teacher
from distill_lab.train.training_log import OnLog, TrainingLog
from distill_lab.train.validation import Validation
from distill_lab.types import Fields, JsonObject

VALIDATION_LOSS = "validation_loss"
TOKENS_PER_ANSWER = "tokens_per_answer"


class MicroBatch(TypedDict):
    """What the base class hands on for each micro-batch."""

    number: int
    batch: LossBatch


class StudentTrainer(ReplayingTrainer):
    """`transformers.Trainer` with packed batches, a loss that is a sum, and checkpoints that can be trusted."""

    def __init__(
        self,
        model: nn.Module,
        *,
        args: TrainingArguments,
        config: TrainConfig,
        rounds: Rounds,
        objective: Objective,
        on_log: OnLog,
        teacher: Teacher | None = None,
        validation: Sequence[Row] = (),
        log_file: Path | None = None,
        saves_last: bool = False,
        trackers: Sequence[TrainerCallback] = (),
    ) -> None:
        """saves_last: whether the last step has a checkpoint even if the student is saved after it, because something else
        comes in between. trackers: callbacks (`trackers.tracker_callbacks`)."""
        attention = getattr(model, "config")._attn_implementation  # noqa: B009 - wrappers pass it on, unknown to types
        self.flat = "flash" in str(attention)
        self.config, self.rounds, self.on_log, self.saves_last = config, rounds, on_log, saves_last
        self.metrics, self.parts, self.running, self.in_optimizer = MetricSums(), 1, [], False
        self.validation = Validation(validation, config)
        if config.compile:
            loss_module.compile_layers(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=range(rounds.num_batches),  # pyright: ignore[reportArgumentType]
            eval_dataset=self.validation.batches or None,  # pyright: ignore[reportArgumentType]
            data_collator=lambda numbers: {"number": numbers[0]},
            callbacks=[*trackers, Hooks(self)],  # a tracker's run begins before the first validation loss
        )
        self.remove_callback(PrinterCallback)
        # The sum is divided here, by the loss positions of the whole step; the base class must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._clock, self._tokens = (0, time.monotonic()), 0
        self._answers = (0, 0) if trackers else None
        """Loss positions and rows since the last log line, for trackers."""
        self._log_file = TrainingLog(log_file if self.is_world_process_zero() else None)
        self._began = time.monotonic()
        """When training began, had it never been interrupted."""
        self._checks_at_once = self.args.device.type == "cpu"
        """Whether a loss is looked at as soon as it is there; on a GPU that would stop it after every forward pass."""
        self._first_bad_step = torch.zeros((), dtype=torch.int64, device=self.args.device)
        """The first step with a loss that is not finite; 0: none."""
        self.in_place = self.accelerator.num_processes == 1 and not self.args.fp16 and not self.is_deepspeed_enabled
        """Whether head and embeddings add to their gradients themselves: nobody else does, and the loss's scale is known."""
        self.bf16_passes = self._with_bf16_passes(model)
        """The layers that compute in bf16 on a CPU, or None if autocast or nothing does."""
        if self.bf16_passes is None:
            loss_module.install(model, objective, teacher=teacher)
        else:
            passes = self.bf16_passes
            loss_module.install(model, objective, teacher=teacher, head_copy=passes.head_copy, outside=passes.paused)
        if teacher is not None:
            teacher.prepare(flat=self.flat)
        if self.in_place:
            loss_module.add_embedding_gradients_in_place(model)
        self.saved_dtype: torch.dtype | None = None
        """What weights gathered from several GPUs are written in; None: in what they are trained in."""

    def _with_bf16_passes(self, model: nn.Module) -> Bf16Passes | None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if not self.args.bf16 or self.args.device.type != "cpu" or self.config.compile or sharded:
            return None
        passes = Bf16Passes(model, in_place=self.in_place)
        self.flat = self.flat or passes.rows
        return passes

    def get_train_dataloader(self) -> DataLoader:
        """The numbers of the planned micro-batches in their order, dealt out to the processes in turn."""
        numbers = cast("Dataset[int]", self.train_dataset)
        return self.accelerator.prepare(DataLoader(numbers, batch_size=1, collate_fn=self.data_collator))

    def get_batch_samples(
        self, epoch_iterator: Iterator[object], num_batches: int, device: torch.device
    ) -> tuple[list[MicroBatch], torch.Tensor | int | None]:
        """The micro-batches of one step, and its loss positions over all of them and all processes.

        Rows become tensors here and not in the loader, which is a micro-batch ahead: rows may be made on the way.
        """
        numbers, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.running = []
        if not numbers:
            return [], None
        batches = [self.collate(self.rounds.batch(each["number"])) for each in numbers]
        self._tokens += self.rounds.tokens(self.state.global_step)
        positions = sum(len(batch.labels_N) for batch in batches)
        if self._answers is not None:
            num_rows = sum(len(batch.row_ids_R) for batch in batches)
            self._answers = self._answers[0] + positions, self._answers[1] + num_rows
        samples: list[MicroBatch] = [
            {"number": each["number"], "batch": batch} for batch, each in zip(batches, numbers, strict=True)
        ]
        if self.in_place:
            return samples, positions
        return samples, self._sum_over_processes(torch.tensor(positions, device=device))

    def collate(self, bins: list[list[Row]]) -> LossBatch:
        """The batch of these bins, on this process's device."""
        return collate(bins, flat=self.flat).to(self.args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Fields,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, JsonObject]:
        """The micro-batch's share of the step's loss. DDP and FSDP average gradients, hence the number of processes."""
        assert num_items_in_batch is not None, "the loss positions of the step are known"
        scale = {"head_grad_scale": 1 / num_items_in_batch} if self.in_place and model.training else {}
        output: LossOutput = model(inputs["batch"], **scale)
        total = output.total
        self.metrics.add(output.metrics, num_items_in_batch)
        if not self._checks_at_once:
            step = self.state.global_step + 1
            bad = ~torch.isfinite(total.detach()) & (self._first_bad_step == 0)
            self._first_bad_step = torch.where(bad, step, self._first_bad_step)
        elif not torch.isfinite(total):
            raise self._diverged("loss", total.item(), self.state.global_step + 1)
        loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = ""
    ) -> dict[str, float]:
        """The validation loss, in nats per loss position."""
        model = self.model_wrapped
        assert model is not None
        loss = self.validation.loss(model, self.accelerator, flat=self.flat, error=self.out_of_memory)
        metrics = {VALIDATION_LOSS: loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(metrics))
        return metrics

    def floating_point_ops(self, inputs: Fields) -> int:
        """What the base class adds up in its state."""
        batch = inputs["batch"]
        assert isinstance(batch, LossBatch)
        return super().floating_point_ops({"input_ids": batch.input_ids_BW})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trackers and `on_log` see epochs over the rows; the base class knows the whole plan as one."""
        step = self.state.global_step
        self.state.epoch = step * self.config.gradient_accumulation_steps / self.rounds.batches_per_epoch
        # Before anything is saved: every checkpoint, and the student, follows a log line.
        if not math.isfinite(logs.get("loss", 0.0)):
            raise self._diverged("loss", logs["loss"], int(self._first_bad_step) or step)
        # fp16 scales the loss up until gradients overflow, and skips those steps: there alone it is no fault.
        if not math.isfinite(logs.get("grad_norm", 0.0)) and not self.args.fp16:
            raise self._diverged("gradient norm", logs["grad_norm"], step)
        metrics: dict[str, float] = {}
        if "loss" in logs:
            past, then = self._clock
            now = time.monotonic()
            logs["tokens_per_s"] = round(self._tokens / (now - then), 1)
            self._clock, self._tokens = (step, now), 0
            metrics = self.metrics.take(step - past, self._sum_over_processes)
            metrics |= self._tokens_per_answer()
        assert not metrics.keys() & logs.keys(), f"an objective's metric has a name of the log: {sorted(metrics)}"
        logs.update(metrics)  # trackers draw a curve of each
        super().log(logs, start_time)
        if "loss" in logs or VALIDATION_LOSS in logs:
            entry = cast("JsonObject", self.state.log_history[-1])  # its metrics are not a number
            for name in metrics:
                del entry[name], logs[name]
            metrics.pop(TOKENS_PER_ANSWER, None)
            if metrics:
                entry["metrics"] = metrics
            entry["seconds"] = round(time.monotonic() - self._began, 3)
            self._log_file.add(entry)
            shown = {"metrics": metrics} if metrics else {}
            self.on_log({**logs, **shown, "step": step, "num_steps": self.rounds.num_steps})

    def _tokens_per_answer(self) -> dict[str, float]:
        """Mean of the rows since the last log line; on-policy, of what the student wrote. For trackers only."""
        if self._answers is None:
            return {}
        positions, num_rows = self._sum_over_processes(torch.tensor(self._answers, device=self.args.device)).tolist()
        self._answers = (0, 0)
        return {TOKENS_PER_ANSWER: positions / num_rows} if num_rows else {}

    def _sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        summed = self.accelerator.reduce(values, "sum")
        assert isinstance(summed, torch.Tensor)
        return summed

    def _diverged(self, what: str, value: float, step: int) -> UserError:
        return UserError(
            f"step {step}: the {what} is {value}; lower the learning rate (now {self.config.peak_learning_rate:g}). "
            f"Checkpoints of earlier steps are in {self.args.output_dir}"
        )

    def validation_losses(self) -> tuple[float | None, float | None]:
        """Before the first and after the last step."""
        if not self.validation.batches:
            return None, None
        losses = {row["step"]: row[VALIDATION_LOSS] for row in self.state.log_history if VALIDATION_LOSS in row}
        after = losses.get(self.rounds.num_steps)
        return losses[0], self.evaluate()[VALIDATION_LOSS] if after is None else after

    def save(self, partial: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
        """As `saving.save_student`."""
        return saving.save_student(self, partial, tokenizer)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # Gathered from several GPUs, a tied weight stands under each of its names.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        dtype = self.saved_dtype
        state_dict = state_dict and {
            name: weight.to(dtype) if dtype and weight.is_floating_point() else weight
            for name, weight in state_dict.items()
            if name not in tied
        }
        super()._save(output_dir, state_dict)

    def release(self) -> None:
        """Let go of model, gradients and optimizer; the trainer is not usable afterwards.

        The callbacks and the trainer refer to each other, and the accelerator to all it has prepared: without this they
        stay in memory until Python happens to collect cycles, while the next model loads.
        """
        self.callback_handler.callbacks.clear()
        self.accelerator.free_memory()

    def begin_log(self) -> None:
        """Write the log up to here, and count time from what it says."""
        history = self.state.log_history
        past = next((entry["seconds"] for entry in reversed(history) if "seconds" in entry), 0.0)
        self._began = time.monotonic() - past
        self._log_file.begin(history)

    def start_clock(self) -> None:
        """Speed is counted from here."""
        self._clock, self._tokens = (self.state.global_step, time.monotonic()), 0
