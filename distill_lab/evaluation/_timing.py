"""One timed call of an engine, and the pace that a short one shows: engine + prompts -> seconds and tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.evaluation.speed_plan import Pace
from distill_lab.types import Completion, Prompt

if TYPE_CHECKING:
    from distill_lab.generation.engines.transformers import TransformersEngine

PROBE_ROWS, PROBE_TOKENS = 8, 8
"""Prompts and tokens of the short batch that shows a model's pace."""
SLOW_READING_S = 10.0
"""A model that takes longer to read two prompts gets a batch of two."""


def spread(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """At most so many of the prompts, evenly spread."""
    number = min(number, len(prompts))
    return [prompts[index * len(prompts) // number] for index in range(number)]


class Timing(NamedTuple):
    """One timed call of an engine."""

    seconds: float
    tokens: float
    """Generated tokens, of all answers together."""
    answer_tokens: tuple[int, ...] = ()
    """Of each answer, in the order of the prompts."""


def find_pace(engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Pace:
    """What a short answer and a short batch of them take, after a first token that warms the model up."""
    activity.report("finding the pace of", 1, None)
    short = sampling.model_copy(update={"max_new_tokens": min(PROBE_TOKENS, sampling.max_new_tokens)})
    reading_s, _, _ = _parts(engine, prompts[:1], short.model_copy(update={"max_new_tokens": 1}))
    alone_read_s, alone_s, _ = _parts(engine, prompts[:1], short)
    # A model that is slow to read is not made to read many more only to be planned with.
    rows = spread(prompts, PROBE_ROWS if reading_s + alone_read_s < SLOW_READING_S else 2)
    batch_read_s, batch_s, completions = _parts(engine, rows, short)
    ended = all(each.finish_reason == "stop" for each in completions)
    return Pace(
        read_s=alone_read_s,
        token_s=alone_s / max(short.max_new_tokens - 1, 1),
        rows=len(rows),
        batch_read_s=batch_read_s,
        step_s=batch_s / max(short.max_new_tokens - 1, 1),
        most_tokens=max(each.num_tokens for each in completions) if ended else None,
    )


def _parts(
    engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig
) -> tuple[float, float, list[Completion]]:
    """Seconds until the prompts are read, seconds of the tokens after that, and the completions."""
    decoding_s = 0.0

    def hear(heard: activity.Activity | None) -> None:
        nonlocal decoding_s
        if heard is not None and heard.decoding is not None:
            decoding_s = heard.decoding.seconds_decoding

    start = time.perf_counter()
    with activity.listening(hear):
        completions = list(engine.generate(prompts, sampling))
    seconds = time.perf_counter() - start
    return max(seconds - decoding_s, 0.0), decoding_s, completions


def timed_call(
    engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig, *, min_new_tokens: int = 0
) -> Timing:
    """Time one call of the engine: one answer for each prompt, with at least `min_new_tokens` tokens."""
    # The face shows what is being measured, not how far the engine is.
    with activity.listening(lambda heard: None):
        start = time.perf_counter()
        completions = list(engine.generate(prompts, sampling, min_new_tokens=min_new_tokens))
        seconds = time.perf_counter() - start
    written = {completion.id: completion.num_tokens for completion in completions}
    return Timing(seconds, sum(written.values()), tuple(written[prompt.id] for prompt in prompts))


def load_to_time(model: ModelConfig) -> TransformersEngine:
    """The model on the engine that speeds are measured on."""
    from distill_lab.generation.engines.transformers import load

    return load(model, EngineConfig(engine="transformers"))
