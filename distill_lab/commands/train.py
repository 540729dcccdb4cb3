"""Train a student on a training set: rows of prompt and completion -> model directory.

In: a JSONL or Parquet file of `{"prompt": [messages], "completion": [messages]}` (which `distill system1` writes as
train.jsonl, and which TRL, LLaMA-Factory and Axolotl read), or with --data any data set that contains answers
(`{"question", "cot"}`), and a base student. Out: a Hugging Face model directory, and <out>.training_log.jsonl with the loss
of each step. Run the same command again to resume from the last complete checkpoint; other rows, models or settings need
another --out, or --overwrite.

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

# From the CoT summary: all linear layers of Qwen2.5 except gate_proj.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
QLORA = (
    *("--student.quantization", "4bit", "--train.lora.r", "8", "--train.lora.alpha", "16"),
    *("--train.lora.dropout", "0.05", "--train.lora.targets", *TARGETS, "--train.learning-rate", "2e-4"),
    *("--train.num-epochs", "3", "--train.tokens-per-batch", "4096", "--train.gradient-accumulation-steps", "4"),
)
"""Settings of the CoT summary, which --cot-dataset implies; other flags override them."""
ALIASES = {
    "--student-model": ("--student.model",),
    "--cot-dataset": (*QLORA, "--data.path"),
    "--output-dir": ("--out",),
    "--report-to": ("--train.report-to",),
    "--model-name": ("--student.model",),
    "--learning-rate": ("--train.learning-rate",),
    "--lr-scheduler-type": ("--train.lr-scheduler-type",),
    "--num-train-epochs": ("--train.num-epochs",),
    "--warmup-ratio": ("--train.warmup-ratio",),
    "--gradient-accumulation-steps": ("--train.gradient-accumulation-steps",),
    "--max-length": ("--train.max-length",),
    "--lora-rank": ("--train.lora.r",),
    "--lora-alpha": ("--train.lora.alpha",),
    "--logging-steps": ("--train.logging-steps",),
}
"""Options of the scripts of chain-of-thought and prompt distillation."""
REFUSED = {
    "--per-device-train-batch-size": "rows are packed without padding, so a micro-batch is a number of tokens; give "
    "--train.tokens-per-batch, such as 8192 for 4 rows of 2,048",
    "--bf16": "give --train.dtype bf16; auto chooses it where the GPU supports it",
    "--fp16": "give --train.dtype fp16; auto chooses it where the GPU has no bf16",
}
"""Their options that mean something else here."""


class Config(settings.Config):
    """Settings of `distill train`."""

    student: ModelConfig
    """The model to train."""
    rows: Path | None = None
    """The training set."""
    data: DataConfig = DataConfig(path="")
    """Instead of rows: a data set with answers, any adapter; writes the rows to <out>.rows.jsonl."""
    instruction: str = ""
    """Text to append to every question of --data."""
    test: DataConfig = DataConfig(path="")
    """Prompts that the student will be tested on: training rows that overlap with them are left out and counted. The rows
    that are trained on are then in <out>.rows.jsonl, those left out in <out>.overlap.jsonl."""
    overlap_words: settings.OverlapWords = 8
    """With --test: leave out rows whose prompt shares this many words in a row with a test prompt, or is a near duplicate of
    one; phrases that many rows have do not count. 0: leave out only the same conversations."""
    out: Path
    """Output directory for the trained student."""
    train: TrainConfig = TrainConfig()
    """How to train it."""
    thinking: bool | None = None
    """Passed to the chat template as enable_thinking; None keeps the template's default."""
    overwrite: bool = False
    """Replace this command's earlier output for other rows, another model or other settings. Never touches other files."""


def main(config: Config) -> None:
    """Train, with a progress bar."""
    import os
    import tempfile
    from contextlib import nullcontext

    from distill_lab.errors import UserError
    from distill_lab.files.claims import claim
    from distill_lab.files.jsonl import copy_file
    from distill_lab.files.outputs import writing
    from distill_lab.generation.model_identity import shown_name
    from distill_lab.planning.preflight import check_loads, check_training, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.train.student import training_inputs
    from distill_lab.train.training_log import check_is_log, log_beside

    check_is_log(log_beside(config.out))
    if (config.rows is None) == (not config.data.path):
        raise UserError("give either --rows train.jsonl, or --data for a data set with answers")
    if config.rows is not None and not config.rows.is_file():
        raise UserError(f"{config.rows}: no such file; `distill system1` writes one as train.jsonl")
    check_writable(config.out)
    check_loads(config.student)
    check_training(config.student, config.train)
    terminal = Terminal()
    copied = config.out.with_name(f"{config.out.name}.rows.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        overlap = Path(folder) / "overlap.jsonl"
        rows = config.rows or _rows(config, Path(folder), copied, terminal)
        written: list[Path] = [] if config.rows else [copied]
        if config.test.path:
            rows = _apart(config, rows, overlap, terminal)
            written = [copied, config.out.with_name(f"{config.out.name}.overlap.jsonl")]
        holding = claim(
            config.out,
            "train",
            inputs=training_inputs(config.student, rows, config.train, thinking=config.thinking),
            files=[config.out, *written],
            reads=[
                config.rows or Path(config.data.path),
                Path(config.test.path or os.devnull),
                Path(config.student.model),
            ],
            shown={"model": shown_name(config.student)},
            overwrite=config.overwrite,
        )
        # If several processes train together, the first one claims the output for all.
        with holding if int(os.environ.get("RANK", "0")) == 0 else nullcontext() as claimed:
            if claimed is not None and claimed.done:
                terminal.note(f"{config.out} was already trained with the same settings; there is nothing to do")
                return
            for source, place in zip((rows, overlap), written, strict=False):
                with writing(place):
                    copy_file(source, place)
            _train(config, copied if written else rows, terminal)


def _train(config: Config, rows: Path, terminal: Terminal) -> None:
    from distill_lab.train.student import train_student
    from distill_lab.train.training_log import log_beside

    log_file = log_beside(config.out)
    terminal.stage(f"training {config.student.model}")
    result = train_student(
        config.student, rows, config.out, config.train, thinking=config.thinking, on_log=terminal.log, log_file=log_file
    )
    dropped = "".join(f", {number} dropped: {reason}" for reason, number in result.dropped.items() if number)
    before, after = result.validation_loss_before, result.validation_loss_after
    validation = f", validation loss {before:.3f} before, {after:.3f} after" if before and after else ""
    terminal.note(f"{result.num_rows} rows{dropped}, {result.steps} steps, {result.seconds:.0f} s{validation}")
    terminal.note(f"loss of each step: {log_file}")
    terminal.note(f"the student is in {config.out}")


def _rows(config: Config, folder: Path, copied: Path, terminal: Terminal) -> Path:
    """Training rows from a data set that contains answers."""
    from distill_lab.data.records import write_prompts
    from distill_lab.training_data.reasoning import add_instruction
    from distill_lab.training_data.training_set import write_training_set

    data, prompts, rows = (folder / f"{name}.jsonl" for name in ("data", "prompts", "rows"))
    terminal.note(f"data: {write_prompts(config.data, data)}")
    add_instruction(data, prompts, config.instruction)
    terminal.note(f"training rows: {write_training_set(prompts, rows)}, in {copied}")
    return rows


def _apart(config: Config, rows: Path, overlap: Path, terminal: Terminal) -> Path:
    """The rows that do not overlap with the test; `overlap` gets the others. Raises NoData if no row is left."""
    from distill_lab.data.contamination import find_overlaps, remove_overlaps
    from distill_lab.data.records import write_prompts
    from distill_lab.errors import NoData
    from distill_lab.files.jsonl import write_jsonl
    from distill_lab.train.rows import checked_rows

    all_rows, test, kept = (overlap.with_name(f"{name}.jsonl") for name in ("all_rows", "test", "kept"))
    terminal.note(f"test prompts: {write_prompts(config.test, test)}")
    write_jsonl(all_rows, checked_rows(rows))
    find_overlaps(all_rows, test, overlap, num_words=config.overlap_words)
    counts = remove_overlaps(all_rows, overlap, kept)
    terminal.note(f"rows apart from the test: {counts}")
    if not counts.kept:
        raise NoData(
            f"no row is left to train on: each overlaps with a prompt of {config.test.path} ({counts}); use other rows, or "
            "--overlap-words 0 to leave out only the same conversations"
        )
    return kept
