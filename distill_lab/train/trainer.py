"""One trainer for every objective: base student and training rows -> a trained student in a directory.

    result = train_student(ModelConfig(model="tiny:student"), Path("train.jsonl"), Path("student"), TrainConfig())

Data in: rows `{"prompt": [...], "completion": [...]}` (JSONL or Parquet). Data out: a Hugging Face directory with
safetensors weights and the tokenizer. Between the two, `<out>.work/` holds sealed checkpoints; the same call after an
interruption goes on from the newest whole one and ends with the same weights.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.models import best_device, compute_dtype, load_model
from distill_lab.run import fingerprint
from distill_lab.train import loss_forward
from distill_lab.train.checkpoints import keep_only, newest_whole, remove_all_but_newest, seal
from distill_lab.train.loss_forward import Objective, cross_entropy_objective
from distill_lab.train.packing import IndexedBatch, Row, collate
from distill_lab.train.plan import Plan, make_plan, training_arguments
from distill_lab.train.rows import Rows, read_rows

OnLog = Callable[[dict[str, Any]], None]
"""Called with `{"step", "num_steps", "epoch", ...}` and `loss`, `grad_norm`, `learning_rate`, `tokens_per_s`, or with
`validation_loss`, or with `note`: a sentence for the user."""
NOT_IN_KEY = {"logging_steps", "save_steps", "report_to"}
"""Settings that may change between an interruption and its resumption."""
VALIDATION_LOSS = "validation_loss"
NUM_CHECKPOINTS = 2
"""Kept while training: should the newest be damaged, there is one before it."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training did."""

    num_rows: int
    """Rows used, those held out for validation included."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens the student read while training, prompts included, padding not."""
    train_loss: float
    """Mean over the steps of the loss, in nats per trained token."""
    validation_loss_before: float | None
    """In nats per trained token; None where no rows were held out."""
    validation_loss_after: float | None
    seconds: float
    """Of this call; an interrupted call before it is not counted."""
    resumed_from: int = 0
    """The step this call went on from."""
    skipped_checkpoints: dict[str, str] | None = None
    """Damaged checkpoints that were passed over: name -> what was wrong."""


def train_student(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    *,
    thinking: bool | None = None,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train `student` on `rows` and leave it in `out`, which appears at once when everything is done.

    thinking: passed to the chat template as `enable_thinking`. Computes in fp32 on a CPU, in bf16 or fp16 with fp32
    weights on a GPU, and saves in what it computed in. Raises UserError (NoData, DataError, ModelError) for what the user
    can mend: unusable rows, quantized weights, a loss that is not a number.
    """
    if student.quantization in ("4bit", "8bit"):
        raise UserError(
            f"{student.model}: {student.quantization} weights cannot be trained; use quantization none, or LoRA"
        )
    start = time.monotonic()
    model, tokenizer = load_model(student.model_copy(update={"quantization": "none"}), training=True)
    data = read_rows(
        rows,
        tokenizer,
        max_length=config.max_length,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        thinking=thinking,
    )
    key = {
        "train": config.model_dump(exclude=NOT_IN_KEY),
        "model": student.model_dump(),
        "files": Path(student.model) if Path(student.model).is_dir() else None,
        "rows": rows,
        "thinking": thinking,
    }
    return train_model(model, tokenizer, data, out, config, key=fingerprint(key), on_log=on_log, start=start)


def train_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Rows,
    out: Path,
    config: TrainConfig,
    *,
    key: str,
    objective: Objective = cross_entropy_objective,
    on_log: OnLog | None = None,
    start: float | None = None,
) -> TrainResult:
    """As `train_student`, for a model and rows that are loaded already (LoRA, other objectives).

    key: what the result depends on; checkpoints of another key are thrown away. `model` is not usable afterwards.
    """
    start = time.monotonic() if start is None else start
    log = on_log or (lambda row: None)
    work = out.with_name(out.name + ".work")
    state = PartialState(cpu=best_device().type == "cpu")
    with state.main_process_first():
        keep_only(work, key)
        found = newest_whole(work, remove=state.is_main_process)
    for name, reason in found.skipped.items():
        chosen = found.checkpoint.name if found.checkpoint else "the beginning"
        log({"note": f"{work / name} was passed over ({reason}); going on from {chosen}"})
    loss_forward.check_head(model)
    mix = loss_forward.rows_stay_apart(model)
    if not mix:
        log({"note": f"{type(model).__name__} lets packed rows see each other: one row per bin, slower"})
    plan = make_plan([len(row) for row in data.training], config, mix=mix, num_processes=state.num_processes)
    args = training_arguments(work, config, plan.num_steps, validate=bool(data.validation))
    trainer = StudentTrainer(model, args=args, config=config, data=data, plan=plan, objective=objective, on_log=log)
    with _quiet():
        trainer.train(resume_from_checkpoint=str(found.checkpoint) if found.checkpoint else None)
        before, after = trainer.validation_losses()
        trainer.save(out, tokenizer)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(work)
    return TrainResult(
        num_rows=data.num_rows,
        dropped=data.dropped,
        steps=plan.num_steps,
        tokens=int(plan.tokens_until[-1]),
        train_loss=trainer.train_loss(),
        validation_loss_before=before,
        validation_loss_after=after,
        seconds=round(time.monotonic() - start, 3),
        resumed_from=int(found.checkpoint.name.rpartition("-")[2]) if found.checkpoint else 0,
        skipped_checkpoints=found.skipped,
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
    ) -> None:
        attention: Any = getattr(model, "config")._attn_implementation  # noqa: B009
        self.flat = "flash" in str(attention)
        self.config, self.data, self.plan, self.on_log = config, data, plan, on_log
        self.validation: list[IndexedBatch] = []
        if data.validation:
            lengths = [len(row) for row in data.validation]
            self.validation = make_plan(lengths, config.model_copy(update={"num_epochs": 1.0, "max_steps": -1})).batches
        loss_forward.install(model, objective)
        super().__init__(
            model=model,
            args=args,
            train_dataset=plan.batches,  # pyright: ignore[reportArgumentType]
            eval_dataset=self.validation or None,  # pyright: ignore[reportArgumentType]
            data_collator=lambda batches: self._collate(batches[0], data.training),
            callbacks=[_Hooks(self)],
        )
        self.remove_callback(PrinterCallback)
        # The sum is divided here, by the tokens of the whole step; the base class must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._clock = (0, time.monotonic())

    def _collate(self, batch: IndexedBatch, rows: Sequence[Row]) -> dict[str, Any]:
        return collate([[rows[index] for index in bin_] for bin_ in batch], flat=self.flat)

    def get_train_dataloader(self) -> DataLoader:
        """The planned batches in their order, dealt out to the processes in turn."""
        batches: Any = self.plan.batches
        return self.accelerator.prepare(
            DataLoader(batches, batch_size=1, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory)
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one step, and its trained tokens over all of them and all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        trained = torch.tensor(sum(len(batch["labels_N"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(trained, "sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the step's loss. DDP and FSDP average gradients, hence the number of processes."""
        total = model(**inputs)
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
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        loss_forward.uninstall(model)
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            model.to(compute_dtype(self.args.device))
        partial = out.with_name(f".{out.name}.partial")
        if self.args.should_save and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial))
        if not self.args.should_save:
            return
        (partial / "training_args.bin").unlink()
        tokenizer.save_pretrained(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)

    def start_clock(self) -> None:
        """Speed is counted from here."""
        self._clock = (self.state.global_step, time.monotonic())


class _Hooks(TrainerCallback):
    """What happens around the steps: the first validation loss, whole log windows, sealed checkpoints."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and self.trainer.validation:
            self.trainer.evaluate()
        self.trainer.start_clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A log window never spans a checkpoint: what was logged before an interruption and after it adds up.
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            work = Path(args.output_dir)
            seal(work / f"checkpoint-{state.global_step}")
            remove_all_but_newest(work, NUM_CHECKPOINTS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only faces print; transformers draws a bar for every file it saves, and warns of tied weights when it resumes."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
