"""Train a student on a training set: rows of prompt and completion -> model directory.

In: a JSONL or Parquet file of `{"prompt": [messages], "completion": [messages]}` (what `distill system1` writes as
train.jsonl, and what TRL, LLaMA-Factory and Axolotl read), or with --data any data set that brings its answers along
(`{"question", "cot"}`), and a base student. Out: a Hugging Face model directory. The same command again goes on from the
last whole checkpoint.

    distill train --student tiny:student --rows runs/system1/train.jsonl --out my-student
    distill train --student_model MODEL --cot_dataset cot_dataset.jsonl --output_dir my-adapters     4 bits, LoRA r 8
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab import config as settings
from distill_lab.config import DataConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from distill_lab.terminal import Terminal

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
QLORA = (
    *("--student.quantization", "4bit", "--train.lora.r", "8", "--train.lora.alpha", "16"),
    *("--train.lora.dropout", "0.05", "--train.lora.targets", *TARGETS, "--train.learning-rate", "2e-4"),
    *("--train.num-epochs", "3", "--train.tokens-per-batch", "4096", "--train.gradient-accumulation-steps", "4"),
)
"""The settings of the CoT summary, which --cot-dataset brings along; every one of them can be given otherwise."""
ALIASES = {
    "--student-model": ("--student.model",),
    "--cot-dataset": (*QLORA, "--data.path"),
    "--output-dir": ("--out",),
}


class Config(settings.Config):
    """Settings of `distill train`."""

    student: ModelConfig
    """The model to train."""
    rows: Path | None = None
    """The training set."""
    data: DataConfig = DataConfig(path="")
    """Instead of rows: a data set with answers, any adapter; the rows go to <out>.rows.jsonl."""
    instruction: str = ""
    """Stands after every question of --data."""
    out: Path
    """Where the trained student goes."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking; None leaves its default."""


def main(config: Config) -> None:
    """Train, with a progress bar."""
    from distill_lab.errors import UserError
    from distill_lab.preflight import check_loads, check_training, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.train.trainer import train_student

    if config.out.exists():
        raise UserError(f"{config.out} exists; remove it or choose another --out")
    if (config.rows is None) == (not config.data.path):
        raise UserError("what is to be trained on? give --rows train.jsonl, or --data for a data set with answers")
    check_writable(config.out)
    check_loads(config.student)
    check_training(config.student, config.train)
    terminal = Terminal()
    rows = config.rows or _rows(config, terminal)
    terminal.stage(f"training {config.student.model}")
    result = train_student(
        config.student, rows, config.out, config.train, thinking=config.thinking, on_log=terminal.log
    )
    dropped = "".join(f", {number} dropped: {reason}" for reason, number in result.dropped.items() if number)
    before, after = result.validation_loss_before, result.validation_loss_after
    validation = f", validation loss {before:.3f} -> {after:.3f} nats per token" if before and after else ""
    terminal.note(f"{result.num_rows} rows{dropped}, {result.steps} steps, {result.seconds:.0f} s{validation}")
    terminal.note(f"the student is in {config.out}")


def _rows(config: Config, terminal: Terminal) -> Path:
    """Training rows from a data set whose rows bring their answers along."""
    import tempfile

    from distill_lab.data import write_prompts
    from distill_lab.reasoning import add_instruction
    from distill_lab.training_set import write_training_set

    rows = config.out.with_name(f"{config.out.name}.rows.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        data, prompts = Path(folder) / "data.jsonl", Path(folder) / "prompts.jsonl"
        terminal.note(f"data: {write_prompts(config.data, data)}")
        add_instruction(data, prompts, config.instruction)
        terminal.note(f"training rows: {write_training_set(prompts, rows)}, in {rows}")
    return rows
