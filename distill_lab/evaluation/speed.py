"""How fast and how big models are, against each other on this machine: models + prompts -> a Speed per model.

    speeds = measure({"teacher": teacher, "student": student}, prompts, sampling=SamplingConfig(max_new_tokens=128))
    speeds["teacher"].seconds_per_answer / speeds["student"].seconds_per_answer      # how many times as fast

Shared machines are noisy, so the models stand in memory side by side and take turns within seconds of each other,
every figure is a median over rounds, and a first answer of each model is not timed. Everything runs on the transformers
engine: the same code for all, so what differs is the model. How many prompts, tokens and rounds there are follows from the
pace of a first short batch and a budget of seconds for each model (`measure_plan`). Memory is taken before that, in a
process for each model, one after another, which loads it and answers one batch (`peak_memory`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation._speed_plan import MAX_TOKENS, NUM_BATCHED, Plan, make_plan
from distill_lab.evaluation._timing import Timing, find_pace, load_to_time, spread, timed_call
from distill_lab.evaluation.peak_memory import peak_memory
from distill_lab.types import Prompt

if TYPE_CHECKING:
    from distill_lab.generation.engines.transformers import TransformersEngine

BUDGET_S = EngineConfig.model_fields["measure_budget_s"].default
LATENCY_TOKENS, REASONING_TOKENS = 128, 256
"""Of a latency answer, and of one that reasons."""
NUM_LATENCIES = 20
"""Latency answers of a model; of fewer there is no 95th percentile."""
MEMORY_SHARE = 0.2
"""Of the budget, for the process that shows the memory; loading the model left out."""
LATENCY_BUDGET_S = 60.0
DTYPE_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


@dataclass(frozen=True, slots=True)
class Speed:
    """What one model takes to answer, on this machine, beside the others it was measured with."""

    tokens_per_s: float
    """Generated tokens per second in batches; median over rounds."""
    tokens_per_s_single: float
    """Generated tokens per second, one prompt at a time."""
    seconds_per_answer: float
    """Seconds in batches over number of prompts; median over rounds."""
    seconds_per_answer_single: float
    """Seconds per answer, one prompt at a time: mean over prompts of the median over rounds."""
    latency_p50_s: float
    """Median seconds of an answer of exactly `latency_tokens` tokens, alone, from the prompt's text to the answer's."""
    latency_p95_s: float | None
    """95th percentile of the same; None of fewer than NUM_LATENCIES answers."""
    mean_tokens: float
    """Generated tokens per answer in the batches."""
    num_parameters: int
    peak_memory_bytes: int | None
    """Most memory while loading and answering one batch, in a process of its own: on a CUDA GPU what was allocated
    there, else what the process had resident, Python and torch included. None on Windows."""
    latency_tokens: int = LATENCY_TOKENS
    num_latencies: int = NUM_LATENCIES
    """Latency answers that the budget had room for."""
    num_prompts: int = NUM_BATCHED
    """Prompts of a batch."""
    max_tokens: int = MAX_TOKENS
    """Answers were cut at so many tokens while they were timed."""
    engine: str = "transformers"
    device: str = ""
    dtype: str = ""
    """What it ran on, as in `NVIDIA A10G, 24 GB`, and computed in."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Speed:
        """What `to_json` made."""
        return cls(**row)


def measure(
    models: Mapping[str, ModelConfig],
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingConfig,
    rounds: int = 3,
    latency_tokens: int = LATENCY_TOKENS,
    budget_s: float = BUDGET_S,
) -> dict[str, Speed]:
    """Time `models` (name -> which) against each other on the same `prompts`.

    sampling: as the models are used; one answer of at most MAX_TOKENS tokens per prompt is timed, whatever it says.
    rounds: how often each part is repeated, at least 1; fewer, as well as fewer prompts and tokens, where the budget is too
    small. latency_tokens: of the answers behind `Speed.latency_p95_s`. budget_s: seconds for each model, loading it left
    out; at least one answer of each kind is timed however long it takes. Of many prompts the first 64 are used in batches
    and 8 of those one at a time. Prompts that some model cannot take (too long for it) are left out for all. Raises
    UserError without prompts that all can take, ModelError for a model that does not load.
    """
    from distill_lab.models.loading import resolve_precision

    if not prompts:
        raise UserError("no prompts to measure with; give at least one")
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; at least 1 is needed")
    # Before anything is started, so that a wrong name is told at once, and once, so that all processes compute alike.
    models = {name: resolve_precision(model) for name, model in models.items()}
    prompts = prompts[:NUM_BATCHED]
    sampling = sampling.model_copy(update={"num_samples": 1})
    memory = peak_memory(models, prompts, sampling=sampling, budget_s=MEMORY_SHARE * budget_s)
    engines = {name: load_to_time(model) for name, model in models.items()}
    prompts = _taken_by_all(engines, prompts, sampling)
    start = time.perf_counter()
    paces = [find_pace(engine, prompts, sampling) for engine in engines.values()]
    left_s = len(engines) * (1 - MEMORY_SHARE) * budget_s - (time.perf_counter() - start)
    plan = make_plan(
        paces,
        budget_s=left_s,
        num_prompts=len(prompts),
        max_tokens=sampling.max_new_tokens,
        rounds=rounds,
        latency_tokens=latency_tokens,
    )
    sampling = sampling.model_copy(update={"max_new_tokens": plan.max_tokens})
    batch = spread(prompts, plan.num_prompts)
    batched = _in_turns(engines, [batch], sampling, rounds=plan.rounds, budget_s=None, what="timing answers in batches")
    singles = [[prompt] for prompt in spread(batch, plan.num_single)]
    single = _in_turns(
        engines,
        singles,
        sampling,
        rounds=plan.rounds_single,
        budget_s=plan.single_s / plan.rounds_single,
        what="timing answers one at a time",
    )
    latencies = _latencies(engines, prompts, sampling, latency_tokens, budget_s=plan.latency_s / len(engines))
    return {
        name: _speed(
            engine, plan, len(batch), batched[name], single[name], latencies[name], latency_tokens, memory[name]
        )
        for name, engine in engines.items()
    }


def _speed(
    engine: TransformersEngine,
    plan: Plan,
    num_prompts: int,
    batched: Sequence[Sequence[Timing]],
    single: Sequence[Sequence[Timing]],
    latencies: Sequence[float],
    latency_tokens: int,
    memory: int | None,
) -> Speed:
    from distill_lab.device import device_name

    seconds, tokens = _medians(batched)
    seconds_single, tokens_single = _medians(single)
    enough = len(latencies) >= NUM_LATENCIES
    return Speed(
        tokens_per_s=tokens / seconds,
        tokens_per_s_single=tokens_single / seconds_single,
        seconds_per_answer=seconds / num_prompts,
        seconds_per_answer_single=seconds_single,
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p95_s=float(np.percentile(latencies, 95)) if enough else None,
        mean_tokens=tokens / num_prompts,
        num_parameters=_num_parameters(engine),
        peak_memory_bytes=memory,
        latency_tokens=latency_tokens,
        num_latencies=len(latencies),
        num_prompts=num_prompts,
        max_tokens=plan.max_tokens,
        device=device_name(engine.model.device),
        dtype=_dtype(engine),
    )


def _dtype(engine: TransformersEngine) -> str:
    """What a model computes in, and how many bits its weights have where they are quantized."""
    name = DTYPE_NAMES.get(str(engine.model.dtype), str(engine.model.dtype))
    how: Any = getattr(engine.model.config, "quantization_config", None)
    bits = [each for each in ("4bit", "8bit") if getattr(how, f"load_in_{each}", False)]
    return f"{name} with {bits[0]} weights" if bits else name


def _taken_by_all(
    engines: Mapping[str, TransformersEngine], prompts: Sequence[Prompt], sampling: SamplingConfig
) -> list[Prompt]:
    """The prompts that every model can answer."""
    reasons: dict[str, str] = {}
    for engine in engines.values():
        for prompt in prompts:
            if refusal := engine.refusal(prompt, sampling):
                reasons[prompt.id] = f"{prompt.id}: {refusal}"
    taken = [prompt for prompt in prompts if prompt.id not in reasons]
    if not taken:
        raise UserError(f"no prompt that every model can take to measure with ({next(iter(reasons.values()))})")
    return taken


def _in_turns(
    engines: Mapping[str, TransformersEngine],
    jobs: Sequence[Sequence[Prompt]],
    sampling: SamplingConfig,
    *,
    rounds: int,
    budget_s: float | None,
    what: str = "timing answers",
) -> dict[str, list[list[Timing]]]:
    """Per model, per job, its timings over the rounds. Every second round goes through the models backwards."""
    timings: dict[str, list[list[Timing]]] = {name: [] for name in engines}
    start = time.perf_counter()
    for turn in range(rounds):
        order = list(engines)[:: -1 if turn % 2 else 1]
        for number, job in enumerate(jobs):
            if turn == 0 and number and budget_s is not None and time.perf_counter() - start > budget_s:
                jobs = jobs[:number]
                break
            for place, name in enumerate(order):
                activity.report(what, (turn * len(jobs) + number) * len(order) + place, rounds * len(jobs) * len(order))
                if turn == 0:
                    timings[name].append([])
                timings[name][number].append(timed_call(engines[name], job, sampling))
    return timings


def _medians(timings: Sequence[Sequence[Timing]]) -> Timing:
    """Mean over jobs of the median over rounds."""
    seconds = [median(second for second, _ in job) for job in timings]
    tokens = [median(token for _, token in job) for job in timings]
    return sum(seconds) / len(seconds), sum(tokens) / len(tokens)


def _latencies(
    engines: Mapping[str, TransformersEngine],
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    num_tokens: int,
    *,
    budget_s: float = LATENCY_BUDGET_S,
) -> dict[str, list[float]]:
    """Seconds per answer of exactly `num_tokens` tokens, one at a time, the models taking turns.

    A model's answers end after `budget_s`, though fewer than NUM_LATENCIES were taken; at least one is.
    """
    forced = sampling.model_copy(update={"max_new_tokens": num_tokens, "stop": ()})
    taken: dict[str, list[float]] = {name: [] for name in engines}
    left = list(prompts)
    while left and any(len(seconds) < NUM_LATENCIES for seconds in taken.values()):
        prompt = left.pop(0)
        activity.report("timing the latency, answer", max(map(len, taken.values())) + 1, NUM_LATENCIES)
        timings = {
            name: timed_call(engine, [prompt], forced, min_new_tokens=num_tokens)
            for name, engine in engines.items()
            if sum(taken[name]) + (max(taken[name]) if taken[name] else 0.0) <= budget_s or not taken[name]
        }
        if not timings:
            break
        # A prompt so long that some model has no room for the whole answer is not asked again.
        if all(tokens == num_tokens for _, tokens in timings.values()):
            left.append(prompt)
            for name, (seconds, _) in timings.items():
                taken[name].append(seconds)
    if not all(taken.values()):
        raise UserError(f"no prompt leaves every model room for {num_tokens} tokens; measure with shorter ones")
    return taken


def _num_parameters(engine: TransformersEngine) -> int:
    from distill_lab.models.loading import num_parameters

    return num_parameters(engine.model)
