"""How fast and how big models are, against each other on this machine: models + prompts -> a Speed per model.

    speeds = measure({"teacher": teacher, "student": student}, prompts, sampling=SamplingConfig(max_new_tokens=128))
    speeds["teacher"].seconds_per_answer / speeds["student"].seconds_per_answer      # how many times as fast

Shared machines are noisy, so the models stand in memory side by side and take turns within seconds of each other,
every figure is a median over rounds, and a first answer of each model is not timed. Everything runs on the transformers
engine: the same code for all, so what differs is the model. Memory is taken in a process of its own per model, which
loads it and answers one batch (`python -m distill_lab.measure`, a job as JSON on standard input).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.types import Prompt

if TYPE_CHECKING:
    from distill_lab.engines.transformers import TransformersEngine

NUM_BATCHED = 64
"""Most prompts of a round in batches."""
NUM_SINGLE = 8
"""Most prompts of a round one at a time."""
SINGLE_BUDGET_S = 60.0
"""The first round one at a time stops taking further prompts after this long, over all models."""
LATENCY_TOKENS, REASONING_TOKENS = 128, 256
"""Of a latency answer, and of one that reasons."""
NUM_LATENCIES = 20
LATENCY_BUDGET_S = 60.0
"""A model's latency answers end after this long, though fewer than NUM_LATENCIES were taken; at least one is."""


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
    latency_p95_s: float
    """95th percentile of the same."""
    mean_tokens: float
    """Generated tokens per answer in the batches."""
    num_parameters: int
    peak_memory_bytes: int | None
    """Most memory while loading and answering one batch, in a process of its own: on a CUDA GPU what was allocated
    there, else what the process had resident, Python and torch included. None on Windows."""
    latency_tokens: int = LATENCY_TOKENS

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
) -> dict[str, Speed]:
    """Time `models` (name -> which) against each other on the same `prompts`.

    sampling: as the models are used; one answer per prompt is timed whatever `num_samples` says. rounds: how often each
    part is repeated, at least 1. latency_tokens: of the answers behind `Speed.latency_p95_s`. Of many prompts the first
    64 are used in batches and 8 of those one at a time. Prompts that some model cannot take (too long for it) are left
    out for all. Raises UserError without prompts that all can take, ModelError for a model that does not load.
    """
    from distill_lab.models import settled

    if not prompts:
        raise UserError("no prompts to measure with; give at least one")
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; at least 1 is needed")
    # Before anything is started, so that a wrong name is told at once, and once, so that all processes compute alike.
    models = {name: settled(model) for name, model in models.items()}
    prompts = prompts[:NUM_BATCHED]
    sampling = sampling.model_copy(update={"num_samples": 1})
    memory = peak_memory(models, prompts, sampling=sampling)
    engines = {name: _load(model) for name, model in models.items()}
    prompts = _taken_by_all(engines, prompts, sampling)
    batched = _in_turns(engines, [list(prompts)], sampling, rounds=rounds, budget_s=None)
    spread = [prompts[index * len(prompts) // NUM_SINGLE] for index in range(NUM_SINGLE)]
    singles = [[prompt] for prompt in (spread if len(prompts) > NUM_SINGLE else prompts)]
    single = _in_turns(engines, singles, sampling, rounds=rounds, budget_s=SINGLE_BUDGET_S)
    latencies = _latencies(engines, prompts, sampling, latency_tokens)
    speeds = {}
    for name, engine in engines.items():
        seconds, tokens = _medians(batched[name])
        seconds_single, tokens_single = _medians(single[name])
        speeds[name] = Speed(
            tokens_per_s=tokens / seconds,
            tokens_per_s_single=tokens_single / seconds_single,
            seconds_per_answer=seconds / len(prompts),
            seconds_per_answer_single=seconds_single,
            latency_p50_s=float(np.percentile(latencies[name], 50)),
            latency_p95_s=float(np.percentile(latencies[name], 95)),
            mean_tokens=tokens / len(prompts),
            num_parameters=_num_parameters(engine),
            peak_memory_bytes=memory[name],
            latency_tokens=latency_tokens,
        )
    return speeds


Timing = tuple[float, float]
"""Seconds and generated tokens (medians and means of them, too)."""


def _taken_by_all(
    engines: Mapping[str, TransformersEngine], prompts: Sequence[Prompt], sampling: SamplingConfig
) -> list[Prompt]:
    """The prompts every model can answer, found by one token each; warms the models up besides."""
    reasons: dict[str, str] = {}
    for engine in engines.values():
        for completion in engine.generate(prompts, sampling.model_copy(update={"max_new_tokens": 1})):
            if completion.finish_reason == "error":
                reasons[completion.id] = f"{completion.id}: {completion.error}"
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
            for name in order:
                if turn == 0:
                    timings[name].append([])
                timings[name][number].append(_timed(engines[name], job, sampling))
    return timings


def _medians(timings: Sequence[Sequence[Timing]]) -> Timing:
    """Mean over jobs of the median over rounds."""
    seconds = [median(second for second, _ in job) for job in timings]
    tokens = [median(token for _, token in job) for job in timings]
    return sum(seconds) / len(seconds), sum(tokens) / len(tokens)


def _latencies(
    engines: Mapping[str, TransformersEngine], prompts: Sequence[Prompt], sampling: SamplingConfig, num_tokens: int
) -> dict[str, list[float]]:
    """Seconds per answer of exactly `num_tokens` tokens, one at a time, the models taking turns."""
    forced = sampling.model_copy(update={"max_new_tokens": num_tokens, "stop": ()})
    taken: dict[str, list[float]] = {name: [] for name in engines}
    left = list(prompts)
    while left and any(len(seconds) < NUM_LATENCIES for seconds in taken.values()):
        prompt = left.pop(0)
        timings = {
            name: _timed(engine, [prompt], forced, min_new_tokens=num_tokens)
            for name, engine in engines.items()
            if sum(taken[name]) < LATENCY_BUDGET_S
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


def _timed(
    engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig, *, min_new_tokens: int = 0
) -> Timing:
    start = time.perf_counter()
    completions = list(engine.generate(prompts, sampling, min_new_tokens=min_new_tokens))
    return time.perf_counter() - start, sum(completion.num_tokens for completion in completions)


def _load(model: ModelConfig) -> TransformersEngine:
    from distill_lab.engines.transformers import load

    return load(model, EngineConfig(engine="transformers"))


def _num_parameters(engine: TransformersEngine) -> int:
    from distill_lab.models import num_parameters

    return num_parameters(engine.model)


def peak_memory(
    models: Mapping[str, ModelConfig], prompts: Sequence[Prompt], *, sampling: SamplingConfig
) -> dict[str, int | None]:
    """Peak memory in bytes of each model loading and answering `prompts` as one batch, each in a process of its own.

    See `Speed.peak_memory_bytes`. Raises ModelError, with what the process said last, where one fails.
    """
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, model in models.items():
            with tempfile.TemporaryFile("w+", encoding="utf-8") as job:
                json.dump(_job(model, prompts, sampling), job)
                job.seek(0)
                children[name] = subprocess.Popen(
                    [sys.executable, "-m", "distill_lab.measure"],
                    stdin=job,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    env=environment,
                )
        return {name: _peak_of(child, models[name].model) for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def _job(model: ModelConfig, prompts: Sequence[Prompt], sampling: SamplingConfig) -> dict[str, Any]:
    return {
        "model": model.model_dump(mode="json"),
        "prompts": [prompt.to_json() for prompt in prompts],
        "sampling": sampling.model_dump(mode="json"),
    }


def _peak_of(child: subprocess.Popen[str], model: str) -> int | None:
    output, errors = child.communicate()
    if child.returncode != 0:
        said = errors.strip().splitlines()[-1] if errors.strip() else "nothing"
        raise ModelError(model, f"measuring its memory ended with exit code {child.returncode}; its last words: {said}")
    return json.loads(output.strip().splitlines()[-1])["peak_memory_bytes"]


def _memory_reader() -> Callable[[], int | None]:
    """What reads this process's peak memory so far, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated
    if Path("/proc/self/status").is_file():
        # Not ru_maxrss: on Linux that starts at the peak of the process that started this one.
        return lambda: next(
            1024 * int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
    if sys.platform == "win32":
        return lambda: None
    import resource

    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """One model's peak memory: the job as JSON on standard input, the answer as JSON on standard output."""
    job = json.load(sys.stdin)
    read = _memory_reader()
    engine = _load(ModelConfig(**job["model"]))
    _timed(engine, [Prompt.from_json(row) for row in job["prompts"]], SamplingConfig(**job["sampling"]))
    print(json.dumps({"peak_memory_bytes": read()}))


if __name__ == "__main__":
    main()
