"""What a recipe will need here: settings -> downloads, memory, tokens and time of every stage, and what speaks against it.

    forecast = make_forecast("system1", config)
    forecast.stages, forecast.seconds, forecast.problems

Loads no weights, generates nothing, downloads nothing. Memory is the estimator's (`memory_estimate.py`), time follows from
products timed on this machine (`throughput.py`), rows and lengths from the data (`volume.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from distill_lab.config import ModelConfig, RecipeConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.speed import NUM_ROUNDS
from distill_lab.evaluation.speed_plan import MAX_TOKENS, NUM_BATCHED, NUM_SINGLE
from distill_lab.evaluation.speedups import LATENCY_TOKENS, NUM_LATENCIES
from distill_lab.models.names import api_engine
from distill_lab.planning.known_models import config_of
from distill_lab.planning.machine import Machine
from distill_lab.planning.memory_estimate import BYTES, Compute, Memory, generation_memory, gigabytes
from distill_lab.planning.method import Method, answering, check_answering, choose_method
from distill_lab.planning.model_shape import Shape, shape_of
from distill_lab.planning.throughput import Throughput, measure_throughput
from distill_lab.planning.volume import Volume, is_local, local_tokenizer, measure_volume
from distill_lab.report.overlap import overlap_note

CHECKPOINT_BYTES = 12
"""Per trained weight: the weight and AdamW's two moments, in fp32."""
CHECKPOINTS = 2
"""On disk at the same time, while a new one is written."""
LOAD_BYTES_PER_S = 500e6
"""Assumed speed of reading weights from a disk."""
START_S = 2.0
"""Seconds to build a model, besides reading its weights."""


@dataclass(frozen=True)
class Download:
    """A model or data set that the recipe takes from somewhere."""

    role: str
    name: str
    place: str
    """Where it is: on this machine, on a server, or on the hub."""
    bytes: float
    """Size of the download; 0 if nothing is downloaded or the size is unknown."""


@dataclass(frozen=True)
class StageForecast:
    """One stage that computes for long."""

    name: str
    seconds: float | None
    """None: not known, such as for a model on a server."""
    tokens_in: float
    """Tokens read, or trained on."""
    tokens_out: float
    """Tokens generated."""
    memory: Memory | None
    how: str
    """The precision and how many answers at once, or the training method."""


@dataclass(frozen=True)
class Forecast:
    """What a recipe needs on this machine."""

    recipe: str
    machine: Machine
    downloads: tuple[Download, ...]
    volume: Volume
    stages: tuple[StageForecast, ...]
    disk_bytes: float
    """For checkpoints and the student, in the run directory."""
    free_bytes: float
    problems: tuple[str, ...]
    """What will stop the recipe, each with its remedy."""
    warnings: tuple[str, ...]
    tokenizers: tuple[str, ...] = ()
    """What of the data's texts two different tokenizers agree on, as a table."""

    @property
    def seconds(self) -> float | None:
        """Of all stages; None if one of them is not known."""
        known = [each.seconds for each in self.stages]
        return None if None in known else sum(each for each in known if each is not None)

    @property
    def peak(self) -> StageForecast | None:
        """The stage that needs the most memory."""
        return max((each for each in self.stages if each.memory), key=lambda each: _total(each.memory), default=None)


def make_forecast(recipe: str, config: RecipeConfig, *, directory: Path, machine: Machine) -> Forecast:
    """What `distill <recipe>` needs with these settings in `directory`. Raises UserError for data it would refuse."""
    volume = measure_volume(config, recipe)
    problems: list[str] = []
    try:
        method: Method | None = choose_method(config.student, config.train_settings(config.teacher), machine=machine)
    except ModelError as error:
        method = None
        problems.append(f"the student cannot be looked at before it is downloaded ({error})")
    except UserError as error:
        method = None
        problems.append(str(error))
    stages = tuple(_stages(config, volume, method, machine, problems))
    disk = _disk_bytes(method) if method else 0.0
    free = shutil.disk_usage(_existing(directory)).free
    if disk > free:
        problems.append(
            f"{directory}: checkpoints and student need about {gigabytes(disk)}, and {gigabytes(free)} are free; give "
            "--run on another disk"
        )
    problems += _template_problems(config)
    downloads = tuple(_downloads(config))
    return Forecast(
        recipe, machine, downloads, volume, stages, disk, free, tuple(problems), tuple(_warnings(config, volume)),
        tokenizers=tuple(_tokenizers(config, volume)),
    )  # fmt: skip


def _stages(
    config: RecipeConfig, volume: Volume, method: Method | None, machine: Machine, problems: list[str]
) -> Iterator[StageForecast]:
    asks, tests = volume.num_answers > 0, volume.test_rows > 0
    if getattr(config, "choose_prompts", "all") != "all":
        written, samples = getattr(config, "rollout", config.sampling), getattr(config, "pass_rate_samples", 0)
        number = volume.rows * samples
        yield _answers("the student's samples", config.student, written, volume, machine, problems, number=number)
    if asks:
        yield _answers(
            "teacher answers", config.teacher, config.sampling, volume, machine, problems, teacher=True, training=True
        )
    if method and (rollouts := num_rollouts(config, volume)):
        epochs: float = getattr(config, "warm_up_epochs", 0.0)
        if epochs:
            train = method.train.model_copy(
                update={"num_epochs": epochs, "max_steps": -1, "teacher": ModelConfig(model="")}
            )
            yield replace(_training(volume, replace(method, train=train), machine), name="warm-up")
        written = getattr(config, "rollout", config.sampling)
        yield _answers("rollouts", method.student, written, volume, machine, problems, number=rollouts)
        yield _training(volume, method, machine, rows=rollouts)
    elif method:
        chosen: str = getattr(config, "choose_rows", "all")
        share: float = 1.0 if chosen == "all" else getattr(config, "rows_share", 1.0)
        yield _training(volume, method, machine, share=share, scored=chosen == "gap")
    if tests:
        proof = config.proof()
        for stage, role, sampling in proof:
            model = {"teacher": config.teacher, "base": config.student, "student": method and method.student}[role]
            if model:
                teacher = role == "teacher"
                yield _answers(stage, model, sampling, volume, machine, problems, teacher=teacher)
        timed = config.measure and any(each.role == "student" for each in proof)
        if timed and not api_engine(config.teacher.model):
            yield _speeds(config, volume, [config.teacher, method.student if method else config.student], machine)


def _answers(
    name: str,
    model: ModelConfig,
    sampling: SamplingConfig,
    volume: Volume,
    machine: Machine,
    problems: list[str],
    *,
    teacher: bool = False,
    training: bool = False,
    number: int = 0,
) -> StageForecast:
    """Answers of a model to the training or the test prompts. number: how many, if that does not follow from these."""
    prompts = number or (volume.rows if training else volume.test_rows)
    number = number or (volume.num_answers if training else volume.test_rows * sampling.num_samples)
    generated = number * min(volume.answer.mean, sampling.max_new_tokens)
    read = prompts * volume.prompt.mean + (volume.shared_tokens if teacher else 0)
    if api_engine(model.model):
        # A server reads the shared part for every prompt, and is paid for it.
        read = number * (volume.prompt.mean + (volume.shared_tokens if teacher else 0))
        return StageForecast(name, None, read, generated, None, "on a server")
    try:
        shape = shape_of(model)
    except ModelError:
        return StageForecast(name, None, read, generated, None, "not known before the download")
    if teacher:
        try:
            check_answering(
                model, machine=machine, new_tokens=sampling.max_new_tokens, role="teacher", num_gpus=machine.num_gpus
            )
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return StageForecast(name, None, read, generated, None, "does not fit")
    chosen, alone = answering(shape, model, machine, new_tokens=sampling.max_new_tokens)
    compute = _compute(shape, chosen, machine)
    rows = _rows_at_once(shape, alone, volume, number, sampling, machine, compute)
    need = generation_memory(
        shape,
        quantization=chosen.quantization,
        compute=compute,
        rows=rows,
        # What all prompts begin with is computed and held once.
        prompt_tokens=round(volume.prompt.mean + (volume.shared_tokens / rows if teacher else 0)),
        new_tokens=round(volume.answer.mean),
        sampled=sampling.temperature > 0,
        cpu=machine.device == "cpu",
    )
    speed = _speed(shape, compute, chosen.quantization)
    seconds = START_S + shape.num_parameters * 2 / LOAD_BYTES_PER_S + speed.read_s(read)
    # As answers end, fewer are left: on average the last batch is half full.
    seconds += speed.decode_s(generated, rows=rows) + speed.decode_s(volume.answer.p95, rows=1) / 2
    bits = compute if chosen.quantization in ("none", "auto") else chosen.quantization.replace("bit", "-bit")
    return StageForecast(name, seconds, read, generated, need, f"{bits}, {rows} at once")


def _speeds(config: RecipeConfig, volume: Volume, models: list[ModelConfig], machine: Machine) -> StageForecast:
    """Timing teacher and student in turns, in batches and one at a time (`evaluation/speed.py`)."""
    seconds, tokens = 0.0, min(volume.answer.mean, config.test_sampling.max_new_tokens, MAX_TOKENS)
    prompts = min(volume.test_rows, NUM_BATCHED)
    for model in models:
        try:
            shape = shape_of(model)
        except ModelError:
            return StageForecast("speeds", None, 0, 0, None, "not known before the download")
        chosen, _ = answering(shape, model, machine)
        speed = _speed(shape, _compute(shape, chosen, machine), chosen.quantization)
        batched = NUM_ROUNDS * (
            speed.read_s(prompts * volume.prompt.mean) + speed.decode_s(prompts * tokens, rows=prompts)
        )
        alone = NUM_ROUNDS * NUM_SINGLE * speed.decode_s(tokens, rows=1)
        latency = NUM_LATENCIES * speed.decode_s(LATENCY_TOKENS, rows=1)
        seconds += min(batched + alone + latency, config.engine.measure_budget_s)
    return StageForecast(
        "speeds", 3 * START_S + seconds, 0, 0, None, "both models in turns, at most measure-budget-s each"
    )


def num_rollouts(config: RecipeConfig, volume: Volume) -> int:
    """Answers that the student writes in its training; 0 in recipes that have no rollouts."""
    per_step: int = getattr(config, "rollouts_per_step", 0)
    if not per_step or config.train.max_steps > 0:
        return per_step * config.train.max_steps
    samples = getattr(config, "rollout", config.sampling).num_samples
    return round(config.train.num_epochs * volume.rows * (1 - config.train.validation_fraction) * samples)


def _training(
    volume: Volume, method: Method, machine: Machine, *, rows: float = 0, share: float = 1.0, scored: bool = False
) -> StageForecast:
    """rows: that are trained on once; 0: the `share` of the data's, in every epoch. scored: chosen after all were read."""
    shape, train = shape_of(method.student), method.train
    compute = _compute(shape, method.student.model_copy(update={"dtype": train.dtype}), machine)
    length = volume.prompt.mean + volume.answer.mean
    epochs = 1.0 if rows else train.num_epochs
    known = volume.rows * max(1, volume.answers_per_prompt) * (1 - train.validation_fraction)
    known *= 1 - volume.too_long / max(1, volume.sampled)
    read = (rows or known) * length
    tokens = read * share * epochs
    if train.max_steps > 0 and not rows:
        tokens = min(tokens, train.max_steps * train.tokens_per_batch * train.gradient_accumulation_steps)
    speed = _speed(shape, compute, "none")
    seconds = speed.train_s(tokens, adapters=bool(train.lora.r), checkpointing=train.gradient_checkpointing)
    seconds += START_S + shape.num_parameters * 2 / LOAD_BYTES_PER_S
    if scored:
        seconds += speed.read_s(read)
    if train.teacher.model and not api_engine(train.teacher.model):
        # It reads every row that is trained on or scored: in each epoch beside the student, once into a cache.
        teacher = shape_of(train.teacher)
        passes = 1.0 if train.teacher_cache.mode != "off" else epochs
        chosen, _ = answering(teacher, train.teacher, machine)
        reading = _speed(teacher, _compute(teacher, chosen, machine), chosen.quantization)
        seconds += reading.read_s(read * (1.0 if scored else share) * passes)
    return StageForecast("training", seconds / train.num_processes, tokens, 0, method.memory, method.line)


def _rows_at_once(
    shape: Shape,
    alone: Memory,
    volume: Volume,
    number: int,
    sampling: SamplingConfig,
    machine: Machine,
    compute: Compute,
) -> int:
    """How many answers the engine generates at once: limited by their number, by memory and by the engine."""
    from distill_lab.generation.engines.transformers import CACHE_FRACTION, MAX_ROWS_CPU, MAX_ROWS_GPU

    most = MAX_ROWS_CPU if machine.device == "cpu" else MAX_ROWS_GPU
    free = CACHE_FRACTION * max(0.0, machine.usable - alone.total)
    tokens = round(volume.prompt.mean + min(volume.answer.mean, sampling.max_new_tokens))
    row = BYTES[compute] * shape.kv_elements(tokens) + shape.vocabulary * (24 if sampling.temperature else 4)
    return max(1, min(number, most, int(free / row)))


def _compute(shape: Shape, model: ModelConfig, machine: Machine) -> Compute:
    """The dtype that `auto` means for this model here."""
    if model.dtype != "auto":
        return model.dtype
    if machine.device != "cpu":
        return machine.compute
    from distill_lab.device import MIN_GAIN, bf16_gain

    layers = [(each.inputs, each.outputs) for each in shape.linears for _ in range(each.count)]
    return "bf16" if bf16_gain(layers) >= MIN_GAIN else "fp32"


@cache
def _speed(shape: Shape, compute: Compute, quantization: str) -> Throughput:
    return measure_throughput(shape, compute=compute, quantization=quantization)


def _disk_bytes(method: Method) -> float:
    shape, lora = shape_of(method.student), method.train.lora
    trained = shape.adapter_weights(lora.r, lora.targets) if lora.r else shape.num_parameters
    student = 4 * (shape.num_parameters if not lora.r or lora.merge else trained)
    return CHECKPOINTS * CHECKPOINT_BYTES * trained + student


def _downloads(config: RecipeConfig) -> Iterator[Download]:
    for role, model in (("teacher", config.teacher), ("student", config.student)):
        name = model.model
        if api_engine(name):
            yield Download(role, name, "on a server", 0)
        elif is_local(name):
            yield Download(role, name, "on this machine", 0)
        else:
            size = 2.0 * shape_of(model).num_parameters if config_of(name) else 0.0
            yield Download(role, name, "to be downloaded from the hub", size)
    for role, data in (("data", config.data), ("test", config.test)):
        if data.path:
            here = data.path.startswith(("tiny:", "prompts:")) or Path(data.path).expanduser().exists()
            yield Download(role, data.path, "on this machine" if here else "on the hub, or in its cache", 0)


def _warnings(config: RecipeConfig, volume: Volume) -> Iterator[str]:
    """What does not stop the recipe, but will disappoint."""
    if volume.too_long:
        share = volume.too_long / volume.sampled
        yield (
            f"about {share:.0%} of the rows are longer than train.max_length {config.train.max_length} and would be "
            f"dropped; --train.max-length {_next_length(volume)} keeps them"
        )
    if volume.overlap is not None and (note := overlap_note(volume.overlap)):
        yield note
    if volume.counted and volume.complete and volume.rows < 100:
        yield f"only {volume.rows} prompts to learn from; expect a small gain, and wide intervals"
    if 0 < volume.test_rows < 50:
        yield f"only {volume.test_rows} test prompts: the interval of a score is wider than 25 points"


def _tokenizers(config: RecipeConfig, volume: Volume) -> Iterator[str]:
    """If the recipe takes models with different tokenizers, what they agree on in the sample's texts."""
    from distill_lab.models.token_bytes import same_ids, token_bytes
    from distill_lab.train.agreement import agreement_lines
    from distill_lab.train.comparison import text_agreement

    teacher, student = (local_tokenizer(model) for model in (config.teacher, config.student))
    if getattr(config, "objective", "") not in ("auto", "chunk_likelihood") or teacher is None or student is None:
        return
    if volume.texts and not same_ids(token_bytes(teacher), token_bytes(student)):
        names = (config.teacher.model, config.student.model)
        yield from agreement_lines(text_agreement(volume.texts, student, teacher, names=names))


def _next_length(volume: Volume) -> int:
    needed = volume.prompt.longest + volume.answer.longest + 16
    return int(-(-needed // 256) * 256)


def _template_problems(config: RecipeConfig) -> Iterator[str]:
    """Chat templates and end tokens that will not do, of models that are on this machine."""
    from distill_lab.chat import end_token_ids, inspect_template

    for role, model in (("teacher", config.teacher), ("student", config.student)):
        tokenizer = local_tokenizer(model)
        if tokenizer is None:
            continue
        if not tokenizer.chat_template:
            yield f"the {role} {model.model} has no chat template; choose an instruct model"
            continue
        try:
            inspect_template(tokenizer)
            end_token_ids(tokenizer)
        except UserError as error:
            yield str(error)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _total(memory: Memory | None) -> float:
    return memory.total if memory else 0.0
