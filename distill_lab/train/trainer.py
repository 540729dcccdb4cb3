"""The training loop: `transformers.Trainer` with packed batches, a loss that is a sum, and checkpoints that can be trusted.

A planned training (`plan.py`) -> steps, each loss divided by the trained tokens of its whole step -> the model on disk.
`trainer.train_model` is the way in.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_json
from distill_lab.models.precision import compute_dtype
from distill_lab.train import loss_module
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.hooks import Hooks
from distill_lab.train.loss_module import Objective
from distill_lab.train.packing import IndexedBatch, Row, collate, cut
from distill_lab.train.plan import Plan, make_plan
from distill_lab.train.portable import ADAPTER, make_portable
from distill_lab.train.rows import Rows
from distill_lab.train.training_log import TrainingLog

OnLog = Callable[[dict[str, Any]], None]
"""Called with `{"step", "num_steps", "epoch", ...}` and `loss`, `grad_norm`, `learning_rate`, `tokens_per_s`, or with
`validation_loss`, or with `note`: a sentence for the user."""
VALIDATION_LOSS = "validation_loss"
SMALLER_PASSES = (
    "lower --train.tokens-per-batch or --train.max-length, or use --train.gradient-checkpointing, --train.lora.r 16, "
    "--student.quantization 4bit"
)


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
        log_file: Path | None = None,
    ) -> None:
        attention: Any = getattr(model, "config")._attn_implementation  # noqa: B009 - wrappers pass it on, unknown to types
        self.flat = "flash" in str(attention)
        self.config, self.data, self.plan, self.on_log = config, data, plan, on_log
        self.validation: list[IndexedBatch] = []
        if data.validation:
            lengths = [len(row) for row in data.validation]
            self.validation = make_plan(lengths, config.model_copy(update={"num_epochs": 1.0, "max_steps": -1})).batches
        loss_module.install(model, objective)
        if config.compile:
            loss_module.compile_layers(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=range(len(plan.batches)),  # pyright: ignore[reportArgumentType]
            eval_dataset=self.validation or None,  # pyright: ignore[reportArgumentType]
            data_collator=lambda numbers: self._numbered(numbers[0]),
            callbacks=[Hooks(self)],
        )
        self.remove_callback(PrinterCallback)
        # The sum is divided here, by the tokens of the whole step; the base class must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._clock = (0, time.monotonic())
        self._log_file = TrainingLog(log_file if self.is_world_process_zero() else None)
        self._began = time.monotonic()
        """When training began, had it never been interrupted."""
        self._checks_at_once = self.args.device.type == "cpu"
        """Whether a loss is looked at as soon as it is there; on a GPU that would stop it after every forward pass."""
        self._first_bad_step = torch.zeros((), dtype=torch.int64, device=self.args.device)
        """The first step with a loss that is not finite; 0: none."""
        self._validation_parts = 1
        self.in_optimizer = False
        """Whether the optimizer is taking its step."""
        self.in_place = self.accelerator.num_processes == 1 and not self.args.fp16 and not self.is_deepspeed_enabled
        """Whether head and embeddings add to their gradients themselves: nobody else does, and the loss's scale is known."""
        self.bf16_passes = self._with_bf16_passes(model, objective)
        """The layers that compute in bf16 on a CPU, or None where autocast or nothing does."""
        if self.in_place:
            loss_module.add_embedding_gradients_in_place(model)
        self.parts = 1
        """Into how many parts each micro-batch is cut; doubled when the memory runs out."""
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._step: list[int] = []
        """Numbers of the micro-batches that the running step has come to."""
        self._saved_dtype: torch.dtype | None = None
        """What weights gathered from several GPUs are written in; None: in what they are trained in."""

    def _with_bf16_passes(self, model: nn.Module, objective: Objective) -> Bf16Passes | None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if not self.args.bf16 or self.args.device.type != "cpu" or self.config.compile or sharded:
            return None
        passes = Bf16Passes(model, in_place=self.in_place)
        loss_module.install(model, objective, head_copy=passes.head_copy)
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

    def train(self, *arguments: Any, **settings: Any) -> Any:
        """As the base class; memory that runs out between the passes is a UserError that says what to do."""
        try:
            return super().train(*arguments, **settings)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        trained = sum(weight.numel() for weight in self._weights)
        if not self.in_optimizer:
            raise self._out_of_memory("between the passes", SMALLER_PASSES)
        raise self._out_of_memory(
            "in the optimizer's step",
            f"AdamW keeps 8 bytes for each of the {trained:,} trained weights ({8 * trained / 1e9:.2f} GB); use "
            "--train.optim adamw_8bit (a quarter of that), --train.lora.r 16 (adapters alone are trained) or "
            "--train.gradient-checkpointing (leaves more memory beside the passes)",
        )

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
            raise self._out_of_memory(what, SMALLER_PASSES)
        self.parts *= 2
        tokens = self.config.tokens_per_batch // self.parts
        self.on_log({"note": f"out of memory: micro-batches of {tokens} tokens, {self.parts} times as many to a step"})

    def _out_of_memory(self, where: str, remedy: str) -> UserError:
        return UserError(
            f"step {self.state.global_step + 1}: out of memory {where}; {remedy}. "
            f"Checkpoints of earlier steps are in {self.args.output_dir}"
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss. DDP and FSDP average gradients, hence the number of processes."""
        scale = {"loss_scale": 1 / num_items_in_batch} if self.in_place and model.training else {}
        total = model(**inputs, **scale)
        if not self._checks_at_once:
            step = self.state.global_step + 1
            bad = ~torch.isfinite(total.detach()) & (self._first_bad_step == 0)
            self._first_bad_step = torch.where(bad, step, self._first_bad_step)
        elif not torch.isfinite(total):
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
            sums = self._validate(model, self.validation[min(index, len(self.validation) - 1)])
            # Sharded models need every process to run; a batch beyond the last one only keeps them in step.
            if index < len(self.validation):
                totals += sums
        model.train(was_training)
        summed: Any = self.accelerator.reduce(totals, "sum")
        nats, tokens = summed.tolist()
        metrics = {VALIDATION_LOSS: nats / tokens}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(metrics))
        return metrics

    def _validate(self, model: nn.Module, batch: IndexedBatch) -> torch.Tensor:
        """Nats and trained tokens of one batch, [2], cut smaller where the memory does not take it whole."""
        while True:
            sums = torch.zeros(2, device=self.args.device)
            try:
                for part in cut(batch, self._validation_parts):
                    inputs = self._collate(part, self.data.validation)
                    loss = model(**self._prepare_inputs(inputs)).float()
                    sums += torch.stack([loss, loss.new_tensor(len(inputs["labels_N"]))])
                return sums
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            sums = inputs = loss = None
            free_memory()
            rows = sum(len(bin_) for bin_ in batch)
            if self.accelerator.num_processes > 1 or self._validation_parts >= rows:
                one = self._validation_parts >= rows
                raise self._out_of_memory(
                    f"in the validation{' even with one row at a time' if one else ''}", SMALLER_PASSES
                )
            self._validation_parts *= 2

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trackers and `on_log` see epochs over the rows; the base class knows the whole plan as one."""
        step = self.state.global_step
        self.state.epoch = step * self.config.gradient_accumulation_steps / self.plan.batches_per_epoch
        # Before anything is saved: every checkpoint, and the student, follows a log line.
        if not math.isfinite(logs.get("loss", 0.0)):
            raise self._diverged("loss", logs["loss"], int(self._first_bad_step) or step)
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
            entry = self.state.log_history[-1]
            entry["seconds"] = round(time.monotonic() - self._began, 3)
            self._log_file.add(entry)
            self.on_log({**logs, "step": step, "num_steps": self.plan.num_steps})

    def _diverged(self, what: str, value: float, step: int) -> UserError:
        return UserError(
            f"step {step}: the {what} is {value}; lower the learning rate (now {self.config.peak_learning_rate:g}). "
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

    def save(self, partial: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Model and tokenizer to `partial`; returns whether it still has to be merged there, from its folder adapter/.

        Sharded weights can only be put together by all processes at once, so merging is left to one of them afterwards.
        """
        activity.report("saving the student")
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        loss_module.uninstall(model)
        if self.bf16_passes is not None:
            self.bf16_passes.remove()
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        merge = self.config.lora.r > 0 and self.config.lora.merge
        if not self.config.lora.r:
            if sharded:
                self._saved_dtype = compute_dtype(self.args.device)
            else:
                model.to(compute_dtype(self.args.device))
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        weights = partial / ADAPTER if merge else partial
        self.save_model(str(weights))
        if not self.args.should_save:
            return False
        (weights / "training_args.bin").unlink()
        if self._saved_dtype:
            settings = json.loads((weights / "config.json").read_text(encoding="utf-8"))
            write_json(weights / "config.json", settings | {"dtype": str(self._saved_dtype).removeprefix("torch.")})
        if self.config.lora.r:
            (weights / "README.md").unlink()  # a form that nobody has filled in
        if merge and not sharded:
            from distill_lab.train.lora import save_merged

            # Merged in fp32: many a change is smaller than what half precision resolves.
            full = model.float() if self.bf16_passes is not None else model
            save_merged(full, partial, dtype=compute_dtype(self.args.device))
        if merge and sharded:
            tokenizer.save_pretrained(weights)
            return True
        make_portable(partial, tokenizer, getattr(model, "generation_config", None))
        return False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # Gathered from several GPUs, a tied weight stands under each of its names.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", {})
        dtype = self._saved_dtype
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
        self._clock = (self.state.global_step, time.monotonic())
