"""Check EasyDistill's `training` (any field of TrainingArguments), and translate it into the lab's TrainConfig.

notes = check(path, training)
config, note = train_config(training, lengths, seed=42)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from distill_lab.config import Config, LoraConfig, TrainConfig
from distill_lab.errors import UserError

LEFT_TO_THE_LAB = tuple(
    "bf16 fp16 tf32 half_precision no_cuda use_cpu use_mps use_ipex jit_ local_rank ddp_ fsdp deepspeed dataloader_ "
    "accelerator_config parallelism_config average_tokens torch_compile torch_empty_cache auto_find_batch_size "
    "gradient_checkpointing_kwargs activation_checkpointing full_determinism group_by_length length_column train_sampling "
    "packing padding_free pad_to_multiple_of dataset_num_proc dataset_text_field dataset_kwargs remove_unused_columns "
    "logging_ log_ disable_tqdm run_name project trackio_ save_ eval_ evaluation_strategy per_device_eval prediction_loss "
    "do_train do_eval do_predict include_ batch_eval skip_memory debug overwrite_output_dir resume_from ignore_data_skip "
    "restore_callback push_to_hub hub_ use_cache use_liger liger_".split()
)
"""Prefixes of training settings that change how and where to compute and report, but not what the student learns."""
ONLY_ANSWERS = ("completion_only_loss", "assistant_only_loss")
"""TRL settings for what the lab always does."""
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
MICRO_BATCH_TOKENS = 2048
"""A step with fewer tokens is a single micro-batch: smaller ones would cost time and hardly save memory."""


class Training(Config):
    """`training`: fields of TrainingArguments, with the defaults of EasyDistill's trainer (TRL's SFTTrainer)."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    output_dir: Annotated[str, Field(min_length=1)]
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Annotated[int, Field(ge=-1)] = -1
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    max_length: Annotated[int | None, Field(ge=8)] = None
    max_seq_length: Annotated[int | None, Field(ge=8)] = None
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    lr_scheduler_type: str = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    save_steps: Annotated[float, Field(gt=0)] = 500.0
    logging_steps: Annotated[float, Field(gt=0)] = 10.0
    gradient_checkpointing: bool = False
    report_to: str | tuple[str, ...] | None = None
    seed: int | None = None
    method: Literal["auto", "full", "lora", "qlora"] = "auto"
    """Only in the lab: train all weights, adapters, or adapters on 4-bit weights; auto: the first that fits in memory."""
    lora_r: Annotated[int, Field(ge=0)] = 0
    """Only in the lab: rank of the adapters; 0: 16 if the method uses adapters."""


def longest_batches(training: Training, *, seed: int) -> TrainConfig:
    """The trainer's settings before the rows are known, with the largest possible micro-batches."""
    longest = max_length(training)
    tokens = max(training.per_device_train_batch_size * longest, MICRO_BATCH_TOKENS)
    return TrainConfig(
        method=training.method,
        learning_rate=training.learning_rate,
        max_length=longest,
        tokens_per_batch=tokens,
        gradient_checkpointing=training.gradient_checkpointing,
        lora=LoraConfig(r=training.lora_r, alpha=2 * training.lora_r or 16, merge=training.lora_r > 0),
        seed=seed,
    )


def train_config(
    training: Training, lengths: Sequence[int], *, seed: int, fitted: TrainConfig | None = None
) -> tuple[TrainConfig, str]:
    """The trainer's settings for rows of `lengths` tokens, and a note on the rows per step.

    fitted: the result of `longest_batches` after fitting to this machine; gives the method and the maximum micro-batch.

    EasyDistill's step has per_device_train_batch_size x gradient_accumulation_steps rows; ours has as many packed
    micro-batches as contain about that many rows.
    """
    from distill_lab.train.plan import make_plan

    wanted = training.per_device_train_batch_size * training.gradient_accumulation_steps
    mean = sum(lengths) / len(lengths)
    at_once = max(training.per_device_train_batch_size * mean, min(wanted * mean, MICRO_BATCH_TOKENS))
    if fitted:
        at_once = min(at_once, fitted.tokens_per_batch)
    trackers = (training.report_to,) if isinstance(training.report_to, str) else training.report_to or ()
    config = TrainConfig(
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        max_length=max_length(training),
        tokens_per_batch=max(8, round(at_once)),
        save_steps=training.save_steps,
        logging_steps=max(1, round(training.logging_steps)),
        report_to=tuple(tracker for tracker in trackers if tracker not in ("none", "all")),
        gradient_checkpointing=training.gradient_checkpointing,
        seed=seed,
    )
    if fitted:
        names = ("method", "lora", "optim", "gradient_checkpointing", "learning_rate")
        config = config.model_copy(update={name: getattr(fitted, name) for name in names})
    batches = make_plan(lengths, config).batches_per_epoch
    accumulated = max(1, round(wanted * batches / len(lengths)))
    num_steps = math.ceil(batches * training.num_train_epochs / accumulated)
    if training.max_steps > 0:
        num_steps = training.max_steps
    warmup = training.warmup_ratio
    if training.warmup_steps:
        # A value below 1 is a fraction of all steps, as in transformers.
        share = training.warmup_steps if training.warmup_steps < 1 else training.warmup_steps / num_steps
        warmup = min(1.0, share)
    config = config.model_copy(
        update={
            "num_epochs": training.num_train_epochs,
            "max_steps": training.max_steps or -1,
            "warmup_ratio": warmup,
            "gradient_accumulation_steps": accumulated,
        }
    )
    per_step = accumulated * len(lengths) / batches
    note = (
        f"a step has about {per_step:.1f} rows (in the config: {wanted}), in {accumulated} packed micro-batches of "
        f"{config.tokens_per_batch} tokens; {config.validation_fraction:.0%} of the rows are held out for validation"
    )
    return config, note


def max_length(training: Training) -> int:
    """Maximum tokens per row; EasyDistill truncates longer rows, the lab drops and counts them."""
    return training.max_length or training.max_seq_length or 1024


def check(path: Path, training: Training) -> list[str]:
    """Names of settings that the lab chooses itself. Raises UserError for unsupported settings that it cannot ignore."""
    from transformers import SchedulerType, TrainingArguments

    schedulers = [scheduler.value for scheduler in SchedulerType]
    if training.lr_scheduler_type not in schedulers:
        raise UserError(
            f"{path}: training.lr_scheduler_type: no scheduler {training.lr_scheduler_type!r}; choose from "
            f"{', '.join(schedulers)}"
        )
    if training.max_length and training.max_seq_length and training.max_length != training.max_seq_length:
        raise UserError(f"{path}: training.max_length and training.max_seq_length differ; keep max_length")
    fields = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    left = []
    for key, value in (training.model_extra or {}).items():
        same = value is None or (key in fields and fields[key] == value) or (key in ONLY_ANSWERS and value is True)
        if key.startswith(LEFT_TO_THE_LAB):
            left.append(key)
        elif same or (key == "optim" and value in ADAMW):
            continue
        elif key in fields or key in ONLY_ANSWERS:
            raise UserError(
                f"{path}: training.{key}: the lab's trainer has no such setting, and {json.dumps(value)} would change "
                "the student; remove it"
            )
        else:
            close = get_close_matches(key, [*fields, *Training.model_fields], n=1)
            hint = f"did you mean {close[0]}?" if close else "remove it"
            raise UserError(f"{path}: training.{key}: no such setting; {hint}")
    return [f"training.{key}" for key in left]
