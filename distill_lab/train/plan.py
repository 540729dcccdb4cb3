"""A training laid out before it starts: which rows are in which batch of which step, and the trainer's settings.

Row lengths and `TrainConfig` -> `Plan` and `TrainingArguments`. Because the plan is the same for the same input, an
interrupted training goes on with exactly the batches it would have seen.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from distill_lab.config import ADAPTER_LEARNING_RATE, TrainConfig
from distill_lab.device import best_device, fastest_dtype
from distill_lab.files.jsonl import write_json
from distill_lab.models.precision import compute_dtype, linear_shapes
from distill_lab.train.checkpoints import read_json
from distill_lab.train.packing import IndexedBatch, choose_width, epoch_batches, pack, split_batch

T = TypeVar("T")

LOW_ADAPTER_RATE = 5e-5
MIN_LOG_LINES = 10
"""A training of few steps logs more often than every `logging_steps`, so that its curve has this many points."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TIMED_ROWS = (128,)
"""Rows of the products that are timed: passes over whole micro-batches have many."""


@dataclass(frozen=True)
class Plan:
    """The batches of a whole training in their order; the same for the same rows, settings and number of processes.

    The rows of a step do not depend on the number of processes, so neither does the number of steps, nor the loss.
    """

    batches: list[IndexedBatch]
    """Of all processes, which take them in turn; one may be empty, where a step has fewer rows than processes."""
    num_steps: int
    tokens_until: np.ndarray
    """int64, [num_steps + 1]: tokens of all steps before step i, padding not counted."""
    batches_per_epoch: int
    """Micro-batches of `tokens_per_batch` tokens that all rows make, `gradient_accumulation_steps` of which are a step."""


def micro_batches(config: TrainConfig, num_processes: int) -> int:
    """How many micro-batches each process takes to a step, whose tokens are the same for any number of processes."""
    return math.ceil(config.gradient_accumulation_steps / num_processes)


def make_plan(
    lengths: Sequence[int],
    config: TrainConfig,
    *,
    pack_rows: bool = True,
    num_processes: int = 1,
    round_number: int = 0,
) -> Plan:
    """Lay out all epochs of the rows of one round: every epoch packs and orders its rows again.

    lengths: tokens of each row. round_number: another order for each round of a training whose rows are made on the way.
    A step has the rows of `gradient_accumulation_steps` micro-batches of `tokens_per_batch` tokens, whatever the number of
    processes. Each process takes its share: fewer of these micro-batches, or smaller ones if there are too few.
    """
    width = choose_width(lengths, config.tokens_per_batch) if pack_rows else max(lengths)

    def epoch(number: int) -> list[IndexedBatch]:
        return epoch_batches(
            lengths,
            tokens_per_batch=config.tokens_per_batch,
            width=width,
            seed=config.seed,
            epoch=number,
            round_number=round_number,
            pack_rows=pack_rows,
        )

    per_step = config.gradient_accumulation_steps
    batches = epoch(0)
    batches_per_epoch = len(batches)
    wanted = math.ceil(config.num_epochs * batches_per_epoch) if config.max_steps < 0 else config.max_steps * per_step
    number = 1
    while len(batches) < wanted:
        batches += epoch(number)
        number += 1
    del batches[wanted:]
    tokens = [sum(lengths[index] for bin_ in batch for index in bin_) for batch in batches]
    steps = [sum(tokens[first : first + per_step]) for first in range(0, len(tokens), per_step)]
    dealt = [
        share
        for first in range(0, len(batches), per_step)
        for share in _deal(batches[first : first + per_step], num_processes, lengths, pack_rows=pack_rows)
    ]
    return Plan(dealt, len(steps), np.cumsum([0, *steps]), batches_per_epoch)


def plan_once(
    lengths: Sequence[int], config: TrainConfig, *, num_steps: int, pack_rows: bool = True, round_number: int = 0
) -> Plan:
    """Lay out rows so that each is in exactly one of `num_steps` steps, with about the same number of tokens in each.

    A step has `gradient_accumulation_steps` micro-batches of about the same size; one may be empty if there are few rows.
    lengths: of at least one row for each step. round_number: as in `make_plan`.
    """
    assert len(lengths) >= num_steps, f"{len(lengths)} rows for {num_steps} steps"
    order = np.random.default_rng((config.seed, 0, round_number)).permutation(len(lengths)).tolist()
    width = choose_width(lengths, config.tokens_per_batch) if pack_rows else max(lengths)
    batches: list[IndexedBatch] = []
    tokens: list[int] = []
    for step in _shares(order, [lengths[row] for row in order], num_steps):
        sizes = [lengths[row] for row in step]
        tokens.append(sum(sizes))
        places = pack(sizes, width) if pack_rows else [[place] for place in range(len(step))]
        bins = [[step[place] for place in bin_] for bin_ in places]
        filled = [sum(lengths[row] for row in bin_) for bin_ in bins]
        batches += _shares(bins, filled, config.gradient_accumulation_steps)
    return Plan(batches, num_steps, np.cumsum([0, *tokens]), len(batches))


def with_dtype(config: TrainConfig, model: nn.Module, work: Path) -> TrainConfig:
    """`config` with what dtype `auto` means for `model` on a CPU: the faster of fp32 and bf16, timed on its own shapes.

    Kept in the directory `work`: a training that is resumed computes as it began, however busy the machine is then. Where
    the file is damaged the dtype is timed again; checkpoints of the other one are then other settings' (`keep_only`).
    Quantized weights compute in fp32, which their kernels are made for.
    """
    if config.dtype != "auto" or best_device().type != "cpu":
        return config
    file = work / "dtype.json"
    kept = read_json(file)
    if kept not in ("fp32", "bf16"):
        quantized = any(not weight.is_floating_point() for weight in model.parameters())
        fast = not quantized and fastest_dtype(linear_shapes(model), rows=TIMED_ROWS) == torch.bfloat16
        kept = "bf16" if fast else "fp32"
        write_json(file, kept)
    return config.model_copy(update={"dtype": kept})


def trained_weights(model: nn.Module, config: TrainConfig) -> tuple[int, str]:
    """How many weights of `model` will be trained, and a sentence that says so, with the learning rate."""
    number = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    rate = f"learning rate {config.peak_learning_rate:g}"
    if not config.lora.r:
        return number, f"training all {number:,} weights, {rate}"
    from peft import PeftModel

    assert isinstance(model, PeftModel), "the weights of a student with lora.r are those of its adapters"
    total = model.get_nb_trainable_parameters()[1] - number  # those in 4 bits at their unpacked number
    text = f"training adapters of rank {config.lora.r}: {number:,} weights beside {total:,} frozen ones"
    text += f" ({number / total:.2%}), {rate}"
    if config.peak_learning_rate < LOW_ADAPTER_RATE:
        text += f", at which adapters learn little (their default is {ADAPTER_LEARNING_RATE:g})"
    return number, text


def _deal(
    step: list[IndexedBatch], num_processes: int, lengths: Sequence[int], *, pack_rows: bool
) -> list[IndexedBatch]:
    """A step's micro-batches as equally many for each process: as they are if they divide evenly, else split smaller."""
    number = math.ceil(len(step) / num_processes) * num_processes
    if number == len(step):
        return step
    bins = [bin_ for batch in step for bin_ in batch]
    if len(bins) >= number:
        return split_batch(bins, number)
    rows = [row for bin_ in bins for row in bin_]
    shares = _shares(rows, [lengths[row] for row in rows], number)
    return [([share] if pack_rows else [[row] for row in share]) if share else [] for share in shares]


def _shares(items: Sequence[T], sizes: Sequence[int], number: int) -> list[list[T]]:
    """The items in `number` parts: the largest first, each to the part that is smallest so far."""
    shares: list[list[T]] = [[] for _ in range(number)]
    loads = [(0, index) for index in range(number)]
    for place in sorted(range(len(items)), key=lambda place: -sizes[place]):
        size, index = loads[0]
        shares[index].append(items[place])
        heapq.heapreplace(loads, (size + sizes[place], index))
    return shares


def training_arguments(
    work: Path, config: TrainConfig, num_steps: int, *, validate: bool, num_processes: int = 1
) -> TrainingArguments:
    """The settings of `transformers.Trainer`, for which the plan is one epoch. validate: whether rows are held out."""
    device = best_device()
    automatic = compute_dtype(device) if device.type == "cuda" else torch.float32
    dtype = DTYPES.get(config.dtype, automatic)
    # transformers renamed it within version 5; the old name warns where the new one exists.
    name = "activation" if "activation_checkpointing" in TrainingArguments.__dataclass_fields__ else "gradient"
    checkpointing: dict[str, Any] = {}
    if config.gradient_checkpointing:
        checkpointing = {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_steps=num_steps,
        gradient_accumulation_steps=micro_batches(config, num_processes),
        learning_rate=config.peak_learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_rate} if "min_lr" in config.lr_scheduler_type else None,
        warmup_steps=math.ceil(config.warmup_ratio * num_steps),
        optim=config.optim,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=min(config.logging_steps, max(1, num_steps // MIN_LOG_LINES)),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=_steps(config.save_steps, num_steps),
        eval_strategy="steps" if config.eval_steps and validate else "no",
        eval_steps=_steps(config.eval_steps, num_steps) if config.eval_steps else None,
        seed=config.seed,
        report_to="none",  # the trainer gets the trackers' callbacks, which know the run (`trackers.py`)
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        **checkpointing,
    )


def _steps(value: float, num_steps: int) -> int:
    """A number of steps, from one or from a share of all steps."""
    return max(1, round(value * num_steps if value < 1 else value))
