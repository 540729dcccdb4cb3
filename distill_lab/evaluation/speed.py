"""How fast and how big models are, against each other on this machine: models + prompts -> a Speed per model.

    speeds = measure({"teacher": teacher, "student": student}, prompts, sampling=SamplingConfig(max_new_tokens=128))
    speedups(speeds["teacher"], speeds["student"])      how many times as fast, with intervals (speedups.py)

Shared machines are noisy, so the models are in memory together and take turns within seconds of each other, every figure
is a median over rounds, and a first answer of each model is not timed. Models that do not fit in memory together are loaded
in turns. Everything runs on the transformers engine: the same code for all, so what differs is the model, and the prompts
if each model has its own. How many prompts, tokens and rounds there are follows from the pace of a first short batch and a
budget of seconds for each model (`make_plan`). Memory is taken before that, in a process for each model, one after another,
which loads it and answers one batch (`peak_memory`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation._timing import Timing, find_pace, load_to_time, spread, timed_call
from distill_lab.evaluation.peak_memory import peak_memory
from distill_lab.evaluation.speed_plan import NUM_BATCHED, Pace, Plan, make_plan
from distill_lab.evaluation.speedups import LATENCY_TOKENS, NUM_LATENCIES, Pair, Speed
from distill_lab.types import Prompt

if TYPE_CHECKING:
    from distill_lab.generation.engines.transformers import TransformersEngine

BUDGET_S = EngineConfig.model_fields["measure_budget_s"].default
NUM_ROUNDS = 5
"""Rounds of timing: an interval over fewer is wide (Student's t with 4 degrees of freedom is 2.8, with 2 it is 4.3)."""
MEMORY_SHARE = 0.2
"""Of the budget, for the process that shows the memory; loading the model left out."""
LATENCY_BUDGET_S = 60.0
DTYPE_NAMES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
T = TypeVar("T")


@dataclass(slots=True)
class _Timings:
    """What was timed of one model."""

    batched: list[Timing] = field(default_factory=list)
    """By round."""
    single: list[list[Timing]] = field(default_factory=list)
    """By prompt, then by round."""
    latencies_s: list[float] = field(default_factory=list)
    num_parameters: int = 0
    device: str = ""
    dtype: str = ""

    def describe(self, engine: TransformersEngine) -> None:
        """Note what was timed."""
        from distill_lab.device import device_name

        self.num_parameters = _num_parameters(engine)
        self.device, self.dtype = device_name(engine.model.device), _dtype(engine)


def measure(
    models: Mapping[str, ModelConfig],
    prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
    *,
    sampling: SamplingConfig | Mapping[str, SamplingConfig],
    rounds: int = NUM_ROUNDS,
    latency_tokens: int = LATENCY_TOKENS,
    budget_s: float = BUDGET_S,
    together: bool = True,
) -> dict[str, Speed]:
    """Time `models` (name -> which) against each other on the same `prompts`, or on the same prompts as each sees them.

    prompts: for all models, or name -> prompts, the same ones in the same order in each model's form. sampling: for all, or
    by name; one answer of at most MAX_TOKENS tokens per prompt is timed, whatever it says. rounds: how often each part is
    repeated, at least 1; fewer, as well as fewer prompts and tokens, if the budget is too small. latency_tokens: of the
    answers behind `Speed.latency_p95_s`. budget_s: seconds for each model, loading it left out; at least one answer of each
    kind is timed however long it takes. Of many prompts the first 64 are used in batches and 8 of those one at a time.
    together: hold all models in memory at once; if not, each is loaded for its turn in every round. Prompts that some model
    cannot take (too long for it) are left out for all. Raises UserError without prompts that all can take, ModelError for a
    model that does not load.
    """
    from distill_lab.device import memory_returned
    from distill_lab.models.loading import resolve_precision

    asked = {name: list(some[:NUM_BATCHED]) for name, some in _each(models, prompts).items()}
    if not all(asked.values()):
        raise UserError("no prompts to measure with; give at least one")
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; at least 1 is needed")
    # Before anything is started, so that a wrong name is reported at once, and once, so that all processes compute alike.
    models = {name: resolve_precision(model) for name, model in models.items()}
    samplings = {name: one.model_copy(update={"num_samples": 1}) for name, one in _each(models, sampling).items()}
    memory: dict[str, int | None] = {}
    for name, model in models.items():
        limit_s = MEMORY_SHARE * budget_s
        memory |= peak_memory({name: model}, asked[name], sampling=samplings[name], budget_s=limit_s)
    engines = {name: load_to_time(model) for name, model in models.items()} if together else {}
    start, loading_s, paces, refused = time.perf_counter(), 0.0, list[Pace](), dict[int, str]()
    for name, model in models.items():
        with memory_returned():
            found, pace, loaded_s = _probe(engines.get(name), model, asked[name], samplings[name])
        refused |= found
        paces += [pace] if pace else []
        loading_s += loaded_s
    asked = {name: _without(some, refused) for name, some in asked.items()}
    num_prompts = len(next(iter(asked.values())))
    plan = make_plan(
        paces,
        budget_s=len(models) * (1 - MEMORY_SHARE) * budget_s - (time.perf_counter() - start - loading_s),
        num_prompts=num_prompts,
        max_tokens=max(one.max_new_tokens for one in samplings.values()),
        rounds=rounds,
        latency_tokens=latency_tokens,
    )
    timings = {name: _Timings() for name in models}
    work = _Work(plan, asked, samplings, latency_tokens, timings)
    if together:
        work.time(engines, batched=plan.rounds, single=plan.rounds_single, latencies=True)
    else:
        for turn in range(max(plan.rounds, plan.rounds_single)):
            for name in list(models)[:: -1 if turn % 2 else 1]:
                with memory_returned():
                    parts = {"batched": int(turn < plan.rounds), "single": int(turn < plan.rounds_single)}
                    work.time({name: load_to_time(models[name])}, **parts, latencies=turn == 0)
    return {name: _speed(work, name, memory=memory[name], together=tuple(models)) for name in models}


def _each(names: Iterable[str], some: T | Mapping[str, T]) -> Mapping[str, T]:
    """What each of `names` gets: the same for all, or its own."""
    return some if isinstance(some, Mapping) else dict.fromkeys(names, some)


def _probe(
    engine: TransformersEngine | None, model: ModelConfig, prompts: Sequence[Prompt], sampling: SamplingConfig
) -> tuple[dict[int, str], Pace | None, float]:
    """Why a model cannot answer prompts, by their place; its pace on the others; seconds that loading it took."""
    began, loaded_s = time.perf_counter(), 0.0
    if engine is None:
        engine = load_to_time(model)
        loaded_s = time.perf_counter() - began
    refused = _refusals(engine, prompts, sampling)
    takes = [prompt for place, prompt in enumerate(prompts) if place not in refused]
    return refused, find_pace(engine, takes, sampling) if takes else None, loaded_s


def _refusals(engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> dict[int, str]:
    """Why the model cannot answer some of the prompts, by their place."""
    reasons = {place: engine.refusal(prompt, sampling) for place, prompt in enumerate(prompts)}
    return {place: f"{prompts[place].id}: {reason}" for place, reason in reasons.items() if reason}


def _without(prompts: Sequence[Prompt], refused: Mapping[int, str]) -> list[Prompt]:
    """The prompts that every model can answer. Raises UserError if there are none."""
    taken = [prompt for place, prompt in enumerate(prompts) if place not in refused]
    if not taken:
        raise UserError(f"no prompt that every model can take to measure with ({next(iter(refused.values()))})")
    return taken


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be timed, and what was."""

    plan: Plan
    asked: Mapping[str, Sequence[Prompt]]
    samplings: Mapping[str, SamplingConfig]
    latency_tokens: int
    timings: Mapping[str, _Timings]

    def time(self, engines: Mapping[str, TransformersEngine], *, batched: int, single: int, latencies: bool) -> None:
        """Time some rounds of `engines`, which take turns, and add them to `timings`."""
        plan, share = self.plan, len(engines) / len(self.timings)
        samplings = {name: self._sampling(name, plan.max_tokens) for name in engines}
        batches = {name: [self._batch(name)] for name in engines}
        found = _in_turns(engines, batches, samplings, rounds=batched, budget_s=None, what="timing answers in batches")
        singles = {name: self._singles(name) for name in engines}
        alone = _in_turns(
            engines,
            singles,
            samplings,
            rounds=single,
            budget_s=share * plan.single_s / plan.rounds_single,
            what="timing answers one at a time",
        )
        for name, engine in engines.items():
            timings = self.timings[name]
            timings.batched += [timing for job in found[name] for timing in job]
            timings.single += [[] for _ in alone[name][len(timings.single) :]]
            for job, more in zip(timings.single, alone[name], strict=False):
                job += more
            timings.describe(engine)
        if latencies:
            budget_s = plan.latency_s / len(self.timings)
            asked = {name: self.asked[name] for name in engines}
            taken = _latencies(engines, asked, samplings, self.latency_tokens, budget_s=budget_s)
            for name, seconds in taken.items():
                self.timings[name].latencies_s += seconds

    def _sampling(self, name: str, max_tokens: int) -> SamplingConfig:
        sampling = self.samplings[name]
        return sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, max_tokens)})

    def _batch(self, name: str) -> list[Prompt]:
        return spread(self.asked[name], self.plan.num_prompts)

    def _singles(self, name: str) -> list[list[Prompt]]:
        """The prompts to ask alone; after a first round that the budget ended early, only those of it."""
        singles = [[prompt] for prompt in spread(self._batch(name), self.plan.num_single)]
        done = min(len(timings.single) or len(singles) for timings in self.timings.values())
        return singles[:done]


def _speed(work: _Work, name: str, *, memory: int | None, together: tuple[str, ...]) -> Speed:
    found = work.timings[name]
    num_prompts = len(found.batched[0].answer_tokens)
    seconds, tokens = _medians([found.batched])
    seconds_single, tokens_single = _medians(found.single)
    enough = len(found.latencies_s) >= NUM_LATENCIES
    return Speed(
        tokens_per_s=tokens / seconds,
        tokens_per_s_single=tokens_single / seconds_single,
        seconds_per_answer=seconds / num_prompts,
        seconds_per_answer_single=seconds_single,
        latency_p50_s=float(np.percentile(found.latencies_s, 50)),
        latency_p95_s=float(np.percentile(found.latencies_s, 95)) if enough else None,
        mean_tokens=tokens / num_prompts,
        num_parameters=found.num_parameters,
        peak_memory_bytes=memory,
        latency_tokens=work.latency_tokens,
        num_latencies=len(found.latencies_s),
        num_prompts=num_prompts,
        max_tokens=work.plan.max_tokens,
        device=found.device,
        dtype=found.dtype,
        in_turns_with=together,
        rounds=tuple((timing.seconds, timing.tokens) for timing in found.batched),
        answer_tokens=found.batched[0].answer_tokens,
        answers_single=tuple(_medians([job]) for job in found.single),
        latencies_s=tuple(found.latencies_s),
    )


def _dtype(engine: TransformersEngine) -> str:
    """What a model computes in, and how many bits its weights have where they are quantized."""
    name = DTYPE_NAMES.get(str(engine.model.dtype), str(engine.model.dtype))
    how = getattr(engine.model.config, "quantization_config", None)
    bits = [each for each in ("4bit", "8bit") if getattr(how, f"load_in_{each}", False)]
    return f"{name} with {bits[0]} weights" if bits else name


def _in_turns(
    engines: Mapping[str, TransformersEngine],
    jobs: Sequence[Sequence[Prompt]] | Mapping[str, Sequence[Sequence[Prompt]]],
    sampling: SamplingConfig | Mapping[str, SamplingConfig],
    *,
    rounds: int,
    budget_s: float | None,
    what: str = "timing answers",
) -> dict[str, list[list[Timing]]]:
    """Per model, per job, its timings over the rounds. Every second round goes through the models backwards.

    budget_s: of the first round, after which no further job begins; None: no limit.
    """
    timings: dict[str, list[list[Timing]]] = {name: [] for name in engines}
    each, samplings = _each(engines, jobs), _each(engines, sampling)
    start, num_jobs = time.perf_counter(), min(map(len, each.values()))
    for turn in range(rounds):
        order = list(engines)[:: -1 if turn % 2 else 1]
        for number in range(num_jobs):
            if turn == 0 and number and budget_s is not None and time.perf_counter() - start > budget_s:
                num_jobs = number
                break
            for place, name in enumerate(order):
                activity.report(what, (turn * num_jobs + number) * len(order) + place, rounds * num_jobs * len(order))
                if turn == 0:
                    timings[name].append([])
                timings[name][number].append(timed_call(engines[name], each[name][number], samplings[name]))
    return timings


def _medians(timings: Sequence[Sequence[Timing]]) -> Pair:
    """Mean over jobs of the median over rounds."""
    seconds = [median(timing[0] for timing in job) for job in timings]
    tokens = [median(timing[1] for timing in job) for job in timings]
    return sum(seconds) / len(seconds), sum(tokens) / len(tokens)


def _latencies(
    engines: Mapping[str, TransformersEngine],
    prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]],
    sampling: SamplingConfig | Mapping[str, SamplingConfig],
    num_tokens: int,
    *,
    budget_s: float = LATENCY_BUDGET_S,
) -> dict[str, list[float]]:
    """Seconds per answer of exactly `num_tokens` tokens, one at a time, the models taking turns.

    A model's answers end after `budget_s`, though fewer than NUM_LATENCIES were taken; at least one is.
    """
    each, forced = (
        _each(engines, prompts),
        {
            name: one.model_copy(update={"max_new_tokens": num_tokens, "stop": ()})
            for name, one in _each(engines, sampling).items()
        },
    )
    taken: dict[str, list[float]] = {name: [] for name in engines}
    left = list(range(min(map(len, each.values()))))
    while left and any(len(seconds) < NUM_LATENCIES for seconds in taken.values()):
        place = left.pop(0)
        activity.report("timing the latency, answer", max(map(len, taken.values())) + 1, NUM_LATENCIES)
        timings = {
            name: timed_call(engine, [each[name][place]], forced[name], min_new_tokens=num_tokens)
            for name, engine in engines.items()
            if sum(taken[name]) + (max(taken[name]) if taken[name] else 0.0) <= budget_s or not taken[name]
        }
        if not timings:
            break
        # A prompt so long that some model has no room for the whole answer is not asked again.
        if all(timing.tokens == num_tokens for timing in timings.values()):
            left.append(place)
            for name, timing in timings.items():
                taken[name].append(timing.seconds)
    if not all(taken.values()):
        raise UserError(f"no prompt leaves every model room for {num_tokens} tokens; measure with shorter ones")
    return taken


def _num_parameters(engine: TransformersEngine) -> int:
    from distill_lab.models.loading import num_parameters

    return num_parameters(engine.model)
