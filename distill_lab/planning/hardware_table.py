"""Generate the Markdown tables of docs/hardware.md: what each preset does on each kind of machine, by the estimator.

    python -m distill_lab.planning.hardware_table docs/hardware.md   writes the tables into the document

In: the recipes' presets, the shapes of their models, the machines below. Out: for each machine and preset, how the teacher
is loaded, how the student is trained, the memory of both and a time. Memory comes from `memory_estimate.py`; times are
estimates from the assumed speeds below, not measurements.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill_lab.config import LoraConfig, ModelConfig, Quantization, RecipeConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.planning.machine import Machine
from distill_lab.planning.memory_estimate import WEIGHT_BYTES, generation_memory, gigabytes, training_memory
from distill_lab.planning.method import (
    BITS,
    PROMPT_TOKENS,
    Method,
    answering,
    check_answering,
    choose_method,
    describe,
)
from distill_lab.planning.model_shape import Shape, shape_of

BEGIN, END = "<!-- begin: made by python -m distill_lab.planning.hardware_table -->", "<!-- end -->"
RECIPES = ("system1", "system2", "verified", "cot", "prompt")
STUDENTS = (
    "Qwen2.5-0.5B-Instruct", "Qwen3-0.6B", "Qwen2.5-1.5B-Instruct", "Qwen3-1.7B", "Qwen2.5-3B-Instruct", "Qwen3-4B",
    "Qwen2.5-7B-Instruct", "Qwen3-8B", "Qwen2.5-14B-Instruct", "Qwen2.5-32B-Instruct",
)  # fmt: skip
"""Students in the table of student sizes."""
MODELS = (
    "Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-14B-Instruct",
    "Qwen3-30B-A3B-Instruct-2507", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct",
)  # fmt: skip
"""Models in the table of memory by size."""


@dataclass(frozen=True)
class Card:
    """A kind of machine and its assumed speed."""

    name: str
    machine: Machine
    teraflops: float
    """Sustained in training, per device: a third to a half of the advertised speed for dense products."""
    bandwidth: float
    """Memory bandwidth in GB per second; decoding achieves half of it."""
    rows: int
    """Answers generated at once."""


CARDS = (
    Card("T4 (16 GB)", Machine("cuda", 15e9, 12e9, "fp16"), 20, 320, 64),
    Card("24 GB (L4, 3090)", Machine("cuda", 24e9, 32e9, "bf16"), 50, 400, 128),
    Card("40 GB (A100)", Machine("cuda", 40e9, 80e9, "bf16"), 130, 1500, 256),
    Card("80 GB (A100, H100)", Machine("cuda", 80e9, 128e9, "bf16"), 150, 2000, 512),
    Card("8 x 80 GB", Machine("cuda", 80e9, 1024e9, "bf16", 8), 150, 2000, 512),
    Card("laptop (16 GB RAM, no GPU)", Machine("cpu", 16e9, 16e9, "fp32"), 0.3, 40, 16),
)
ROW_TOKENS = {"system1": 350, "system2": 2000, "verified": 500, "cot": 350, "prompt": 300}
"""Assumed tokens per training row."""
ANSWER_TOKENS = {"system1": 250, "system2": 1000, "verified": 400, "cot": 200, "prompt": 800}
"""Assumed tokens per teacher answer."""
PROMPT_ROWS = 1000
"""Assumed number of texts for the recipe prompt, which has no default data."""


def tables() -> str:
    """All tables."""
    return "\n".join([*_presets(), "", *_sizes(), "", *_memory()]) + "\n"


def _presets() -> Iterator[str]:
    yield "### What each preset does"
    yield ""
    yield "| machine | preset | teacher | student | training, memory | estimated time |"
    yield "|---|---|---|---|---|---|"
    for card in CARDS:
        for recipe in RECIPES:
            presets = importlib.import_module(f"distill_lab.recipes.{recipe}").PRESETS
            for name, config in presets.items():
                if name != "tiny":
                    yield f"| {card.name} | {recipe} {name} | {' | '.join(_row(card, recipe, config))} |"


def _row(card: Card, recipe: str, config: RecipeConfig) -> tuple[str, str, str, str]:
    train = config.train
    if card.machine.num_gpus > 1:
        train = train.model_copy(update={"num_processes": card.machine.num_gpus})
    name = config.student.model.partition("/")[2]
    teacher, held, shape = _teacher(card, config)
    try:
        method = choose_method(config.student, train, machine=card.machine)
    except UserError:
        return teacher, name, "does not fit: choose a smaller student", "-"
    text = f"{describe(method.student, method.train)}, {gigabytes(method.memory.total)}"
    if held is None:
        return teacher, name, text, "-"
    return teacher, name, text, _time(_seconds(card, recipe, config, method, held, shape))


def _teacher(card: Card, config: RecipeConfig) -> tuple[str, ModelConfig | None, Shape]:
    shape, name = shape_of(config.teacher), config.teacher.model.partition("/")[2]
    tokens = config.sampling.max_new_tokens
    held, need = answering(shape, config.teacher, card.machine, new_tokens=tokens)
    try:
        check_answering(
            config.teacher, machine=card.machine, new_tokens=tokens, role="teacher", num_gpus=card.machine.num_gpus
        )
    except UserError:
        return f"{name}: does not fit, ask a server", None, shape
    bits = BITS.get(held.quantization, "16-bit" if card.machine.device == "cuda" else "full")
    return f"{name} {bits}, {gigabytes(need.total)}", held, shape


def _seconds(
    card: Card, recipe: str, config: RecipeConfig, method: Method, teacher: ModelConfig, shape: Shape
) -> float:
    """Seconds for the teacher's answers, training, and the answers of three models to the test prompts."""
    rows = _num_rows(config.data.split)
    test = _num_rows(config.test.split) if config.test.path else config.num_test
    num_answers = rows * config.sampling.num_samples if getattr(config, "relabel", True) else 0
    tokens = ANSWER_TOKENS[recipe]
    student = shape_of(method.student)
    seconds = _decoding(card, shape, teacher, (num_answers + test) * tokens) + _decoding(
        card, student, method.student, 2 * test * tokens
    )
    return seconds + _training(card, student, method.train, rows * ROW_TOKENS[recipe])


def _decoding(card: Card, shape: Shape, model: ModelConfig, tokens: float) -> float:
    """Seconds to decode `tokens`: a step reads the weights once and computes one token of every row."""
    width = WEIGHT_BYTES.get(model.quantization, 2.0 if card.machine.device == "cuda" else 4.0)
    reading = shape.num_parameters * width / (card.bandwidth * 1e9 / 2)
    computing = 2 * shape.num_parameters * card.rows / (card.teraflops * 1e12)
    return tokens / card.rows * max(reading, computing, 0.02 if card.machine.device == "cuda" else 0)


def _training(card: Card, shape: Shape, train: TrainConfig, tokens: float) -> float:
    """Training seconds: 6 operations per weight and token, 4 with adapters, 2 more with checkpointing. tokens: per epoch."""
    operations = (4 if train.lora.r else 6) + (2 if train.gradient_checkpointing else 0)
    devices = train.num_processes
    return train.num_epochs * tokens * operations * shape.num_parameters / (card.teraflops * 1e12 * devices)


def _num_rows(split: str) -> int:
    inside = split.partition("[:")[2].rstrip("]")
    return int(inside) if inside.isdigit() else PROMPT_ROWS


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{max(1, round(minutes))} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def _sizes() -> Iterator[str]:
    yield "### Which student fits"
    yield ""
    yield "Rows of up to 1,024 tokens; the method that `auto` chooses, and its memory."
    yield ""
    cards = [card for card in CARDS if card.machine.num_gpus == 1]
    yield f"| student | {' | '.join(card.name for card in cards)} |"
    yield "|---|" + "---|" * len(cards)
    for name in STUDENTS:
        cells = []
        for card in cards:
            try:
                found = choose_method(ModelConfig(model=f"Qwen/{name}"), TrainConfig(), machine=card.machine)
            except UserError:
                cells.append("-")
                continue
            cells.append(f"{describe(found.student, found.train)}, {gigabytes(found.memory.total)}")
        yield f"| {name} | {' | '.join(cells)} |"


def _memory() -> Iterator[str]:
    new_tokens = 512
    full = TrainConfig(max_length=2048, tokens_per_batch=2048, gradient_checkpointing=True)
    adapters = full.model_copy(update={"lora": LoraConfig(r=32)})
    answers: tuple[Quantization, ...] = ("none", "8bit", "4bit")
    trained: tuple[tuple[TrainConfig, Quantization], ...] = ((adapters, "4bit"), (adapters, "none"), (full, "none"))
    yield "### Memory by model size"
    yield ""
    yield (
        f"In bf16 on one GPU. Answers: one prompt of {PROMPT_TOKENS:,} tokens and {new_tokens} new ones; more prompts "
        f"take what is left. Training: micro-batches of {full.tokens_per_batch:,} tokens, checkpointing, AdamW in 32 bits."
    )
    yield ""
    yield "| model | answers, 16-bit | 8-bit | 4-bit | QLoRA r 32 | LoRA r 32 | full fine-tune |"
    yield "|---|" + "---|" * (len(answers) + len(trained))
    for name in MODELS:
        shape = shape_of(ModelConfig(model=f"Qwen/{name}"))
        need = [
            generation_memory(
                shape, quantization=bits, compute="bf16", prompt_tokens=PROMPT_TOKENS, new_tokens=new_tokens
            )
            for bits in answers
        ]
        need += [training_memory(shape, train, quantization=bits, compute="bf16") for train, bits in trained]
        yield f"| {name} | {' | '.join(gigabytes(each.total) for each in need)} |"


def assumptions() -> str:
    """The assumed speeds, as a sentence."""
    speeds = ", ".join(f"{card.name} {card.teraflops:g} TFLOP/s and {card.bandwidth:g} GB/s" for card in CARDS)
    return (
        f"Assumed of each device: {speeds}. On 8 GPUs the student is trained with `--train.num-processes 8`, and the "
        "teacher answers on one."
    )


def update_tables(document: str) -> str:
    """The document with updated tables. Raises UserError if the markers for them are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"the document needs the lines {BEGIN} and {END} around the tables")
    return f"{before}{BEGIN}\n\n{tables()}\n{assumptions()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(update_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
