"""Train a student on a training set: rows of prompt and completion -> model directory.

In: a JSONL or Parquet file of `{"prompt": [messages], "completion": [messages]}` (what `distill system1` writes as
train.jsonl, and what TRL, LLaMA-Factory and Axolotl read) and a base student. Out: a Hugging Face model directory. The
same command again goes on from the last whole checkpoint.

    distill train --student tiny:student --rows runs/system1/train.jsonl --out my-student
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import ModelConfig, TrainConfig


class Config(settings.Config):
    """Settings of `distill train`."""

    student: ModelConfig
    """The model to train."""
    rows: Path
    """The training set."""
    out: Path
    """Where the trained student goes."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking; None leaves its default."""


def main(config: Config) -> None:
    """Train, with a progress bar."""
    from distill_lab.errors import UserError
    from distill_lab.terminal import Terminal
    from distill_lab.train.trainer import train_student

    if config.out.exists():
        raise UserError(f"{config.out} exists; remove it or choose another --out")
    terminal = Terminal()
    terminal.stage(f"training {config.student.model}")
    result = train_student(
        config.student, config.rows, config.out, config.train, thinking=config.thinking, on_log=terminal.log
    )
    dropped = "".join(f", {number} dropped: {reason}" for reason, number in result.dropped.items() if number)
    before, after = result.validation_loss_before, result.validation_loss_after
    validation = f", validation loss {before:.3f} -> {after:.3f} nats per token" if before and after else ""
    terminal.note(f"{result.num_rows} rows{dropped}, {result.steps} steps, {result.seconds:.0f} s{validation}")
    terminal.note(f"the student is in {config.out}")
