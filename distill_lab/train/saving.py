"""The student of a finished training on the disk: plain weights, adapters, or both.

`StudentTrainer` -> a directory with safetensors weights and the tokenizer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from distill_lab import activity
from distill_lab.config import TrainConfig
from distill_lab.files.jsonl import write_json
from distill_lab.models.precision import compute_dtype
from distill_lab.train import loss_module
from distill_lab.train.bf16_passes import Bf16Passes
from distill_lab.train.portable import ADAPTER, make_portable

if TYPE_CHECKING:
    from accelerate import Accelerator


class Saved(Protocol):
    """What saving needs of the trainer (`trainer.StudentTrainer`)."""

    config: TrainConfig
    args: TrainingArguments
    accelerator: Accelerator
    bf16_passes: Bf16Passes | None
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    saved_dtype: torch.dtype | None

    @property
    def model(self) -> nn.Module | None:
        """The student, as it was prepared for its processes."""
        ...

    def save_model(self, output_dir: str) -> None:
        """Write the weights as they are."""


def save_student(trainer: Saved, partial: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Model and tokenizer to `partial`; returns whether it still has to be merged there, from its folder adapter/.

    Sharded weights can only be put together by all processes at once, so merging is left to one of them afterwards.
    """
    activity.report("saving the student")
    config, args = trainer.config, trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    loss_module.uninstall(model)
    if trainer.bf16_passes is not None:
        trainer.bf16_passes.remove()
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    merge = config.lora.r > 0 and config.lora.merge
    if not config.lora.r:
        if sharded:
            trainer.saved_dtype = compute_dtype(args.device)
        else:
            model.to(compute_dtype(args.device))
    if args.should_save and partial.exists():
        shutil.rmtree(partial)
    trainer.accelerator.wait_for_everyone()
    weights = partial / ADAPTER if merge else partial
    trainer.save_model(str(weights))
    if not args.should_save:
        return False
    (weights / "training_args.bin").unlink()
    if trainer.saved_dtype:
        settings = json.loads((weights / "config.json").read_text(encoding="utf-8"))
        write_json(weights / "config.json", settings | {"dtype": str(trainer.saved_dtype).removeprefix("torch.")})
    if config.lora.r:
        (weights / "README.md").unlink()  # a form that nobody has filled in
    if merge and not sharded:
        from distill_lab.train.lora import save_merged

        # Merged in fp32: many a change is smaller than what half precision resolves.
        full = model.float() if trainer.bf16_passes is not None else model
        save_merged(full, partial, dtype=compute_dtype(args.device))
    if merge and sharded:
        tokenizer.save_pretrained(weights)
        return True
    make_portable(partial, tokenizer, getattr(model, "generation_config", None))
    return False
