"""Choose a training method that fits in memory: settings and a machine -> the first method that fits, and why.

    method = choose_method(ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct"), TrainConfig(), machine=this_machine())
    method.student, method.train, method.line

The order is full fine-tuning, + gradient checkpointing, + 8-bit AdamW, LoRA, LoRA + checkpointing, and both on 4-bit weights
(QLoRA). Each is also tried with smaller micro-batches and more of them per step, so that a step has the same number of
tokens. Settings of the user (adapters, quantization, optimizer) are kept and only checked. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from distill_lab.config import ModelConfig, Quantization, RecipeConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.models.names import api_engine
from distill_lab.planning.machine import Machine
from distill_lab.planning.memory_estimate import (
    BYTES,
    CHUNK_ELEMENTS,
    MIN_CHUNK,
    Memory,
    generation_memory,
    gigabytes,
    training_memory,
)
from distill_lab.planning.model_shape import Shape, shape_of
from distill_lab.types import JsonObject

RANK, ALPHA = 16, 32
"""Rank and alpha of adapters chosen automatically."""
ADAPTER_RATE = 10
"""Adapters learn best at about ten times the learning rate of full fine-tuning (Schulman et al. 2025, LoRA Without
Regret)."""
MIN_TOKENS = 1024
"""Minimum tokens per micro-batch (or the maximum row length, if larger): smaller ones leave a GPU idle."""
PROMPT_TOKENS = 1024
"""Assumed prompt length for generation."""
EIGHT_BIT = "adamw_8bit"
BITS: dict[Quantization, str] = {"8bit": "8-bit", "4bit": "4-bit"}


@dataclass(frozen=True)
class Method:
    """A training method that fits in memory."""

    student: ModelConfig
    """How to load the student for training."""
    train: TrainConfig
    memory: Memory
    usable: float
    """Usable memory in bytes."""
    line: str
    """The choice in one sentence."""
    changed: bool
    """Whether it differs from the requested settings."""

    def to_json(self) -> JsonObject:
        """The entry in run.json."""
        return {
            "student": self.student.model_dump(),
            "train": self.train.model_dump(),
            "line": self.line,
            "needs_bytes": round(self.memory.total),
            "usable_bytes": round(self.usable),
        }


def choose_method(student: ModelConfig, train: TrainConfig, *, machine: Machine, shape: Shape | None = None) -> Method:
    """The first method that fits. Raises UserError with the remedy if none does, or if settings contradict each other.

    shape: the student's shape, if already known.
    """
    check_combination(student, train)
    shape = shape or shape_of(student)
    tried: list[tuple[ModelConfig, TrainConfig, Memory]] = []
    for candidate, wanted in candidates(student, train, machine):
        for settings in smaller_batches(wanted):
            need = _need(shape, candidate, settings, machine)
            tried.append((candidate, settings, need))
            if need.total <= machine.usable and need.host <= _host(machine):
                return _found(student, train, tried, machine, shape)
    raise UserError(_misfit(student, train, tried, machine))


def check_combination(student: ModelConfig, train: TrainConfig) -> None:
    """Raise UserError for settings that contradict each other."""
    if train.method == "full" and train.lora.r:
        raise UserError(
            "train.method full trains all weights, but train.lora.r adds adapters; remove one of the two settings"
        )
    adapters = train.lora.r or train.method in ("lora", "qlora")
    if not adapters and student.quantization in BITS:
        raise UserError(
            f"{student.model}: {student.quantization} weights cannot be trained; train adapters on them "
            "(--train.lora.r 16), or use quantization none"
        )
    if train.method == "qlora" and student.quantization not in ("auto", "4bit", "none"):
        raise UserError(f"train.method qlora needs 4-bit weights, but student.quantization is {student.quantization}")


def candidates(student: ModelConfig, train: TrainConfig, machine: Machine) -> Iterator[tuple[ModelConfig, TrainConfig]]:
    """Yield student and training settings in the order to try; all keep the user's settings."""
    free = train.method == "auto" and not train.lora.r
    if free or train.method == "full":
        full = student.model_copy(update={"quantization": "none"})
        base = train.model_copy(update={"method": "full"})
        yield full, base
        checkpointed = base.model_copy(update={"gradient_checkpointing": True})
        yield full, checkpointed
        if train.optim == TrainConfig.model_fields["optim"].default and has_8bit_adamw(machine):
            yield full, checkpointed.model_copy(update={"optim": EIGHT_BIT})
        if train.method == "full":
            return
    bits: tuple[Quantization, ...] = (
        ("none", "4bit") if free or student.quantization == "auto" else (student.quantization,)
    )
    if train.method == "qlora":
        bits = ("4bit",)
    for quantization in bits:
        if quantization != "none" and not can_quantize(machine):
            continue
        adapted = _with_adapters(train, "none" if quantization == "none" else quantization)
        chosen = student.model_copy(update={"quantization": quantization})
        yield chosen, adapted
        yield chosen, adapted.model_copy(update={"gradient_checkpointing": True})


def smaller_batches(train: TrainConfig) -> Iterator[TrainConfig]:
    """Yield `train`, then half the tokens per micro-batch and twice as many micro-batches per step, and so on."""
    yield train
    min_tokens, factor = max(MIN_TOKENS, train.max_length), 2
    while train.tokens_per_batch // factor >= min_tokens:
        update = {
            "tokens_per_batch": train.tokens_per_batch // factor,
            "gradient_accumulation_steps": train.gradient_accumulation_steps * factor,
        }
        yield train.model_copy(update=update)
        factor *= 2


def with_batches(train: TrainConfig, tokens: int, steps: int) -> TrainConfig:
    """`train` with `steps` micro-batches of `tokens` tokens per step, split if `train` allows fewer tokens at once."""
    parts = -(-tokens // train.tokens_per_batch)
    update = {"tokens_per_batch": -(-tokens // parts), "gradient_accumulation_steps": steps * parts}
    return train.model_copy(update=update)


def can_quantize(machine: Machine) -> bool:
    """Whether weights can be quantized to 4 or 8 bits: bitsandbytes has kernels for CUDA and for CPUs."""
    return machine.device in ("cuda", "cpu") and find_spec("bitsandbytes") is not None


def has_8bit_adamw(machine: Machine) -> bool:
    """Whether bitsandbytes' 8-bit AdamW works on this machine. On a CPU it tries a step, because versions differ."""
    if not can_quantize(machine):
        return False
    return machine.device == "cuda" or _takes_8bit_steps()


def _takes_8bit_steps() -> bool:
    import torch

    try:
        from bitsandbytes.optim.adamw import AdamW8bit

        weight = torch.nn.Parameter(torch.zeros(8192))
        weight.grad = torch.ones_like(weight)
        AdamW8bit([weight]).step()
    except (ImportError, NotImplementedError, RuntimeError, AttributeError):
        return False
    return bool(weight.detach().abs().sum() > 0)


def answering(
    shape: Shape, model: ModelConfig, machine: Machine, *, new_tokens: int = 512
) -> tuple[ModelConfig, Memory]:
    """A model for generation with `auto` resolved, and its memory for one prompt at a time.

    The engine then answers as many prompts at once as fit in the remaining memory.
    """
    from distill_lab.models.precision import Weights, fitting_level

    quantization = model.quantization
    if quantization == "auto":
        weights = Weights(shape.num_parameters, shape.embedding + shape.untied_head, shape.num_linear)
        quantization = fitting_level(weights, machine.memory) if machine.device == "cuda" else "none"
    compute = machine.compute if model.dtype == "auto" else model.dtype
    tokens = min(new_tokens, shape.context or new_tokens)
    need = generation_memory(
        shape, quantization=quantization, compute=compute, prompt_tokens=PROMPT_TOKENS, new_tokens=tokens,
        cpu=machine.device == "cpu",
    )  # fmt: skip
    return model.model_copy(update={"quantization": quantization}), need


def check_answering(model: ModelConfig, *, machine: Machine, new_tokens: int, role: str, num_gpus: int = 1) -> None:
    """Raise UserError if a model for generation does not fit on the machine, or on the GPUs its weights are spread over."""
    shape, usable = shape_of(model), machine.usable * num_gpus
    chosen, need = answering(shape, model, machine, new_tokens=new_tokens)
    if need.total <= usable:
        return
    remedies = [f"choose a smaller --{role}"]
    for level in ("8bit", "4bit"):
        packed = chosen.model_copy(update={"quantization": level})
        if can_quantize(machine) and answering(shape, packed, machine, new_tokens=new_tokens)[1].total <= usable:
            remedies.insert(0, f"use --{role}.quantization {level}")
            break
    if role == "teacher":
        remedies.append("use a model on a server (--teacher openai:NAME)")
    bits = f" in {BITS[chosen.quantization]} weights" if chosen.quantization in BITS else ""
    raise UserError(
        f"{model.model}{bits} does not fit {machine}: it needs {gigabytes(need.total)} of {gigabytes(usable)}; "
        f"{' or '.join(remedies)}"
    )


def _with_adapters(train: TrainConfig, quantization: Quantization) -> TrainConfig:
    """`train` with adapters: the user's, otherwise new ones with their own learning rate."""
    method = "lora" if quantization == "none" else "qlora"
    if train.lora.r:
        return train.model_copy(update={"method": method})
    rate = train.learning_rate
    if rate is not None and train.method == "auto":
        rate = ADAPTER_RATE * rate
    lora = train.lora.model_copy(update={"r": RANK, "alpha": ALPHA})
    return train.model_copy(update={"method": method, "lora": lora, "learning_rate": rate})


def _need(shape: Shape, student: ModelConfig, train: TrainConfig, machine: Machine) -> Memory:
    compute = machine.compute if train.dtype == "auto" else train.dtype
    need = training_memory(
        shape,
        train,
        quantization=student.quantization,
        compute=compute,
        shards=train.num_processes if train.sharding == "fsdp2" else 1,
        gpu=machine.device == "cuda",
    )
    if not train.teacher.model or api_engine(train.teacher.model) or train.teacher_cache.mode != "off":
        return need
    return Memory({**need.parts, "teacher": _teacher_bytes(train, machine)}, host=need.host)


def _teacher_bytes(train: TrainConfig, machine: Machine) -> float:
    """The teacher in memory beside the student: its weights, and a pass over one micro-batch with a chunk of logits."""
    chosen, alone = answering(shape_of(train.teacher), train.teacher, machine, new_tokens=1)
    shape = shape_of(chosen)
    compute = machine.compute if chosen.dtype == "auto" else chosen.dtype
    per_token = BYTES[compute] * (3 * shape.mlp_width + 2 * shape.query + 2 * shape.key_value + 4 * shape.hidden)
    chunk = 4 * max(CHUNK_ELEMENTS, MIN_CHUNK * shape.vocabulary)
    return alone.parts["weights"] + alone.parts["unpacked layer"] + per_token * train.tokens_per_batch + chunk


def _host(machine: Machine) -> float:
    return machine.usable_ram if machine.device == "cuda" else float("inf")


def _found(
    student: ModelConfig,
    train: TrainConfig,
    tried: list[tuple[ModelConfig, TrainConfig, Memory]],
    machine: Machine,
    shape: Shape,
) -> Method:
    chosen, settings, need = tried[-1]
    if settings.lora.r and not train.lora.r and not settings.lora.merge:
        # Full fine-tuning would have produced a plain model, so merge the adapters if the merged model fits here.
        plain = ModelConfig(model=student.model)
        merge = answering(shape, plain, machine)[1].total <= machine.usable
        settings = settings.model_copy(update={"lora": settings.lora.model_copy(update={"merge": merge})})
    have, words, size = gigabytes(machine.usable), describe(chosen, settings), gigabytes(need.total)
    line = f"{words}, {size} of {have}"
    if len(tried) > 1:
        line = f"{describe(*tried[0][:2])} needs {gigabytes(tried[0][2].total)} of {have}: {words}, {size}"
        if settings.tokens_per_batch != train.tokens_per_batch:
            steps = settings.gradient_accumulation_steps
            line += f" with micro-batches of {settings.tokens_per_batch} tokens, {steps} per step"
        if settings.learning_rate != train.learning_rate:
            line += f", learning rate {settings.learning_rate:g}"
    return Method(chosen, settings, need, machine.usable, line, changed=len(tried) > 1)


def describe(student: ModelConfig, train: TrainConfig) -> str:
    """A method in words, such as `LoRA r 16 on 4-bit weights with checkpointing`."""
    if train.lora.r:
        text = f"LoRA r {train.lora.r}"
        text += f" on {BITS[student.quantization]} weights" if student.quantization in BITS else ""
    else:
        text = "full fine-tune"
    extras = ["checkpointing"] if train.gradient_checkpointing else []
    extras += ["8-bit AdamW"] if train.optim == EIGHT_BIT else []
    return text + (f" with {' and '.join(extras)}" if extras else "")


def _misfit(
    student: ModelConfig,
    train: TrainConfig,
    tried: list[tuple[ModelConfig, TrainConfig, Memory]],
    machine: Machine,
) -> str:
    chosen, settings, need = min(tried, key=lambda each: each[2].total)
    tokens, have = max(settings.tokens_per_batch, settings.max_length), gigabytes(machine.usable)
    text = (
        f"{student.model} does not fit in the memory of {machine} for training: {describe(chosen, settings)}, micro-batches "
        f"of {tokens} tokens, needs {gigabytes(need.total)} of {have}"
    )
    if need.total <= machine.usable:
        text = (
            f"{student.model} cannot be loaded for training: it needs {gigabytes(need.host)} of host memory, but only "
            f"{gigabytes(machine.usable_ram)} is usable"
        )
    remedies = []
    if train.method == "full":
        remedies.append("use --train.method auto")
    if student.quantization == "none" and train.lora.r and can_quantize(machine):
        remedies.append("use --train.method qlora")
    if train.optim not in (EIGHT_BIT, TrainConfig.model_fields["optim"].default):
        remedies.append(f"use --train.optim {EIGHT_BIT}")
    remedies += [f"lower --train.max-length (now {train.max_length})", "choose a smaller --student"]
    return f"{text}; {', '.join(remedies[:-1])} or {remedies[-1]}"


def still_fits(student: ModelConfig, train: TrainConfig, *, machine: Machine) -> Memory | None:
    """The memory that a method chosen on another machine needs on this one; None if it fits."""
    need = _need(shape_of(student), student, train, machine)
    return None if need.total <= machine.usable and need.host <= _host(machine) else need


def preset_for(presets: Mapping[str, RecipeConfig], machine: Machine) -> tuple[str, str]:
    """Name of the recipe's default preset for this machine, and why: tiny if real sizes do not fit."""
    name = next(name for name in presets if name != "tiny")
    if machine.device == "cpu":
        return "tiny", "this machine has no GPU"
    config = presets[name]
    try:
        check_answering(config.teacher, machine=machine, new_tokens=config.sampling.max_new_tokens, role="teacher")
        choose_method(config.student, config.train, machine=machine)
    except UserError as error:
        return "tiny", f"preset {name} needs more: {error}"
    return name, f"{machine} has {machine.memory / 1e9:.0f} GB"
