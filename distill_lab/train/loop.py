"""The training loop: `transformers.Trainer` with packed batches, a loss that is a sum, and checkpoints that can be trusted.

A planned training (`plan.py`) -> steps, each loss divided by the trained tokens of its whole step -> the model on disk.
`trainer.train_model` is the way in.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.errors import UserError
from distill_lab.memory import free_memory, is_out_of_memory
from distill_lab.outputs import PARTIAL, remove_output
from distill_lab.precision import compute_dtype
from distill_lab.train import loss_forward
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.checkpoints import remove_all_but_newest, seal
from distill_lab.train.loss_forward import Objective
from distill_lab.train.packing import IndexedBatch, Row, collate, cut
from distill_lab.train.plan import Plan, make_plan
from distill_lab.train.portable import make_portable
from distill_lab.train.rows import Rows

OnLog = Callable[[dict[str, Any]], None]
"""Called with `{"step", "num_steps", "epoch", ...}` and `loss`, `grad_norm`, `learning_rate`, `tokens_per_s`, or with
`validation_loss`, or with `note`: a sentence for the user."""
VALIDATION_LOSS = "validation_loss"
ADAPTER = "adapter"
"""Folder of the adapters beside the weights they were merged into."""
NUM_CHECKPOINTS = 2
"""Kept while training: should the newest be damaged, there is one before it."""


class StudentTrainer(Trainer):
    """`transformers.Trainer` with packed batches, a loss that is a sum, and checkpoints that can be trusted."""

    def __init__(
        self,
        model: nn.Module,
        *,
        args: TrainingArguments,
        config: TrainConfig,
        data: Rows,
        plan: Plan,
        objective: Objective,
        on_log: OnLog,
    ) -> None:
        attention: Any = getattr(model, "config")._attn_implementation  # noqa: B009 - wrappers pass it on, unknown to types
        self.flat = "flash" in str(attention)
        self.config, self.data, self.plan, self.on_log = config, data, plan, on_log
        self.validation: list[IndexedBatch] = []
        if data.validation:
            lengths = [len(row) for row in data.validation]
            self.validation = make_plan(lengths, config.model_copy(update={"num_epochs": 1.0, "max_steps": -1})).batches
        loss_forward.install(model, objective)
        if config.compile:
            loss_forward.compile_layers(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=range(len(plan.batches)),  # pyright: ignore[reportArgumentType]
            eval_dataset=self.validation or None,  # pyright: ignore[reportArgumentType]
            data_collator=lambda numbers: self._numbered(numbers[0]),
            callbacks=[_Hooks(self)],
        )
        self.remove_callback(PrinterCallback)
        # The sum is divided here, by the tokens of the whole step; the base class must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._clock = (0, time.monotonic())
        self.in_place = self.accelerator.num_processes == 1 and not self.args.fp16 and not self.is_deepspeed_enabled
        """Whether head and embeddings add to their gradients themselves: nobody else does, and the loss's scale is known."""
        self.bf16_passes = self._with_bf16_passes(model, objective)
        """The layers that compute in bf16 on a CPU, or None where autocast or nothing does."""
        if self.in_place:
            loss_forward.add_embedding_gradients_in_place(model)
        self.parts = 1
        """Into how many parts each micro-batch is cut; doubled when the memory runs out."""
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._step: list[int] = []
        """Numbers of the micro-batches that the running step has come to."""

    def _with_bf16_passes(self, model: nn.Module, objective: Objective) -> Bf16Passes | None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if not self.args.bf16 or self.args.device.type != "cpu" or self.config.compile or sharded:
            return None
        passes = Bf16Passes(model, in_place=self.in_place)
        loss_forward.install(model, objective, head_copy=passes.head_copy)
        self.flat = self.flat or passes.rows
        return passes

    def _collate(self, batch: IndexedBatch, rows: Sequence[Row]) -> dict[str, Any]:
        return collate([[rows[index] for index in bin_] for bin_ in batch], flat=self.flat)

    def _numbered(self, number: int) -> dict[str, Any]:
        return {**self._collate(self.plan.batches[number], self.data.training), "number": number}

    def get_train_dataloader(self) -> DataLoader:
        """The planned batches in their order, dealt out to the processes in turn."""
        numbers: Any = self.train_dataset
        return self.accelerator.prepare(
            DataLoader(numbers, batch_size=1, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory)
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one step, and its trained tokens over all of them and all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._step = []
        trained = sum(len(batch["labels_N"]) for batch in batches)
        if self.in_place:
            return batches, trained
        return batches, self.accelerator.reduce(torch.tensor(trained, device=device), "sum")

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch, cut smaller where the memory does not take it whole.

        The loss is a sum, so the parts' gradients add up to the whole one's. A failed backward pass leaves gradients half
        added: the step's earlier micro-batches are computed again with it.
        """
        number = inputs.pop("number")
        self._step.append(number)
        batches = self.config.gradient_accumulation_steps
        activity.report(
            "training, micro-batch" if batches > 1 else "training, step",
            self.state.global_step * batches + len(self._step),
            self.plan.num_steps * batches,
        )
        again: list[int] = []
        while True:
            try:
                for earlier in again[:-1]:
                    self._in_parts(model, earlier, num_items_in_batch)
                if self.parts == 1 and not again:
                    return super().training_step(model, inputs, num_items_in_batch)
                return self._in_parts(model, number, num_items_in_batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            inputs = {}
            self._halve()
            again = self._step

    def _in_parts(self, model: nn.Module, number: int, num_items_in_batch: Any) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        for part in cut(self.plan.batches[number], self.parts):
            inputs = self._collate(part, self.data.training)
            total += super().training_step(model, inputs, num_items_in_batch)
        return total

    def _halve(self) -> None:
        """Cut micro-batches into twice as many parts. Raises UserError where that is no remedy."""
        for weight in self._weights:
            weight.grad = None
        free_memory()
        rows = max(sum(len(bin_) for bin_ in self.plan.batches[number]) for number in self._step)
        if self.accelerator.num_processes > 1 or self.parts >= rows:
            what = (
                "even with one row at a time" if self.parts >= rows else f"with {self.config.tokens_per_batch} tokens"
            )
            raise UserError(
                f"step {self.state.global_step + 1}: out of memory {what}; lower --train.tokens-per-batch or "
                "--train.max-length, or use --train.gradient-checkpointing, --train.lora.r 16, --student.quantization 4bit. "
                f"Checkpoints of earlier steps are in {self.args.output_dir}"
            )
        self.parts *= 2
        tokens = self.config.tokens_per_batch // self.parts
        self.on_log({"note": f"out of memory: micro-batches of {tokens} tokens, {self.parts} times as many to a step"})

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss. DDP and FSDP average gradients, hence the number of processes."""
        scale = {"loss_scale": 1 / num_items_in_batch} if self.in_place and model.training else {}
        total = model(**inputs, **scale)
        if not torch.isfinite(total):
            raise self._diverged("loss", total.item(), self.state.global_step + 1)
        loss = total * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = ""
    ) -> dict[str, float]:
        """Nats per trained token over the held-out rows, every token counted once on however many processes."""
        model: Any = self.model_wrapped
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        was_training = model.training
        model.eval()
        totals = torch.zeros(2, device=self.args.device)
        for first in range(0, len(self.validation), world):
            index = first + rank
            activity.report("validation loss, batch", first + 1, len(self.validation))
            batch = self._collate(self.validation[min(index, len(self.validation) - 1)], self.data.validation)
            loss = model(**self._prepare_inputs(batch))
            # Sharded models need every process to run; a batch beyond the last one only keeps them in step.
            if index < len(self.validation):
                totals += torch.stack([loss.float(), torch.tensor(float(len(batch["labels_N"])), device=loss.device)])
        model.train(was_training)
        summed: Any = self.accelerator.reduce(totals, "sum")
        nats, tokens = summed.tolist()
        metrics = {VALIDATION_LOSS: nats / tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(metrics))
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trackers and `on_log` see epochs over the rows; the base class knows the whole plan as one."""
        step = self.state.global_step
        per_step = self.config.gradient_accumulation_steps * self.accelerator.num_processes
        self.state.epoch = step * per_step / self.plan.batches_per_epoch
        # fp16 scales the loss up until gradients overflow, and skips those steps: there alone it is no fault.
        if not math.isfinite(logs.get("grad_norm", 0.0)) and not self.args.fp16:
            raise self._diverged("gradient norm", logs["grad_norm"], step)
        if "loss" in logs:
            past, then = self._clock
            now = time.monotonic()
            logs["tokens_per_s"] = round(
                float(self.plan.tokens_until[step] - self.plan.tokens_until[past]) / (now - then), 1
            )
            self._clock = (step, now)
        super().log(logs, start_time)
        if "loss" in logs or VALIDATION_LOSS in logs:
            self.on_log({**logs, "step": step, "num_steps": self.plan.num_steps})

    def _diverged(self, what: str, value: float, step: int) -> UserError:
        return UserError(
            f"step {step}: the {what} is {value}; lower the learning rate (now {self.config.learning_rate:g}). "
            f"Checkpoints of earlier steps are in {self.args.output_dir}"
        )

    def train_loss(self) -> float:
        """Mean over the steps of the loss, those before an interruption included."""
        total, last = 0.0, 0
        for row in self.state.log_history:
            if "loss" in row:
                total += row["loss"] * (row["step"] - last)
                last = row["step"]
        return total / last

    def validation_losses(self) -> tuple[float | None, float | None]:
        """Before the first and after the last step."""
        if not self.validation:
            return None, None
        losses = {row["step"]: row[VALIDATION_LOSS] for row in self.state.log_history if VALIDATION_LOSS in row}
        after = losses.get(self.plan.num_steps)
        return losses[0], self.evaluate()[VALIDATION_LOSS] if after is None else after

    def save(self, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Model and tokenizer to `out`, all at once."""
        activity.report(f"saving the student to {out}")
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        loss_forward.uninstall(model)
        if self.bf16_passes is not None:
            self.bf16_passes.remove()
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if not sharded and not self.config.lora.r:
            model.to(compute_dtype(self.args.device))
        partial = Path(str(self.args.output_dir)) / PARTIAL
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        weights = partial / ADAPTER if self.config.lora.merge else partial
        self.save_model(str(weights))
        if not self.args.should_save:
            return
        (weights / "training_args.bin").unlink()
        if self.config.lora.r:
            (weights / "README.md").unlink()  # a form that nobody has filled in
        if self.config.lora.merge:
            from distill_lab.train.lora import merged

            # Merged in fp32: many a change is smaller than what half precision resolves.
            plain: Any = merged(model.float() if self.bf16_passes is not None else model)
            plain.to(compute_dtype(self.args.device)).save_pretrained(partial)
        make_portable(partial, tokenizer, getattr(model, "generation_config", None))
        remove_output(out)
        partial.rename(out)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # Gathered from several GPUs, a tied weight stands under each of its names.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        state_dict = state_dict and {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)

    def start_clock(self) -> None:
        """Speed is counted from here."""
        self._clock = (self.state.global_step, time.monotonic())


class _Hooks(TrainerCallback):
    """What happens around the steps: the first validation loss, whole log windows, sealed checkpoints."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_optimizer_step(args, state, control)  # weights may have come from a checkpoint
        if state.global_step == 0 and self.trainer.validation:
            self.trainer.evaluate()
        self.trainer.start_clock()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.bf16_passes is not None:
            self.trainer.bf16_passes.refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            activity.report(f"saving a checkpoint after step {state.global_step}")
        # A log window never spans a checkpoint: what was logged before an interruption and after it adds up.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            work = Path(args.output_dir)
            seal(work / f"checkpoint-{state.global_step}")
            remove_all_but_newest(work, NUM_CHECKPOINTS)
