"""What a model takes to answer, and how many times as fast one model is as another, with intervals: Speeds -> ratios.

    found = speedups(speeds["teacher"], speeds["student"])
    found.batched, found.per_token_batched        Figure(4.1, (3.9, 4.3)), Figure(2.0, (1.9, 2.1))

Per answer counts what a user waits for: a student that writes shorter answers is faster. Per token counts what the hardware
does. Both are given for batches and for one prompt at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_lab.evaluation.goals import Figure
from distill_lab.evaluation.intervals import log_mean_variance, log_normal, percentile_95
from distill_lab.evaluation.speed_plan import MAX_TOKENS, NUM_BATCHED
from distill_lab.types import Fields, JsonObject

LATENCY_TOKENS, REASONING_TOKENS = 128, 256
"""Of a latency answer, and of one that reasons."""
NUM_LATENCIES = 20
"""Latency answers of a model; of fewer there is no 95th percentile."""
MEDIAN_VARIANCE = math.pi / 2
"""The most by which the variance of a median exceeds that of a mean, for normal noise (reached by many rounds)."""
Pair = tuple[float, float]
"""Seconds and generated tokens."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What one model takes to answer, on this machine, next to the others it was measured with."""

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
    """Most memory while loading and answering one batch, in a separate process: on a CUDA GPU what was allocated
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
    in_turns_with: tuple[str, ...] = ()
    """Names of the models that took turns with each other, this one among them."""
    rounds: tuple[Pair, ...] = ()
    """Of each round of a batch: seconds and tokens."""
    answer_tokens: tuple[int, ...] = ()
    """Of each answer in the first round of a batch."""
    answers_single: tuple[Pair, ...] = ()
    """Of each prompt alone: medians over rounds of seconds and tokens."""
    latencies_s: tuple[float, ...] = ()
    """Of each latency answer."""

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Fields) -> Speed:
        """What `to_json` made, also in a version that recorded less. Raises ValueError for another form."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(row)


@dataclass(frozen=True, slots=True)
class Speedups:
    """How many times as fast the student is as the teacher."""

    batched: Figure
    """Answers per second in batches. The interval is over rounds of the same batch, and over its prompts for the tokens that
    the two models write."""
    single: Figure
    """Answers per second, one prompt at a time; the interval is over the prompts."""
    per_token_batched: Figure
    """Tokens per second in batches; the interval is over rounds."""
    per_token_single: Figure
    """Tokens per second, one prompt at a time; the interval is over the prompts."""
    num_rounds: int
    num_prompts_single: int


def speedups(teacher: Speed, student: Speed) -> Speedups:
    """The ratios of two Speeds, with intervals.

    The intervals are of the ratio's logarithm, with Student's t. What the two took in the same round, or for the same
    prompt, is paired, so that a moment at which the machine is slow for both cancels: in batches the ratio is the median of
    the rounds' ratios. Models that did not take turns have no interval, nor has a single round or prompt; then the ratio is
    that of the two figures.
    """
    num_rounds = min(len(teacher.rounds), len(student.rounds))
    num_single = min(len(teacher.answers_single), len(student.answers_single))
    batched = teacher.seconds_per_answer / student.seconds_per_answer
    single = teacher.seconds_per_answer_single / student.seconds_per_answer_single
    token_batched = student.tokens_per_s / teacher.tokens_per_s
    token_single = student.tokens_per_s_single / teacher.tokens_per_s_single
    why = _not_paired(teacher, student)
    why_batched = why or ("a single round was timed" if num_rounds < 2 else "")
    why_single = why or ("a single prompt was timed" if num_single < 2 else "")
    if not why_batched:
        seconds, tokens = _columns(teacher.rounds, student.rounds, num_rounds)
        per_round = seconds[0] / seconds[1]
        batched, token_batched = (float(np.median(each)) for each in (per_round, per_round * tokens[1] / tokens[0]))
        rounds = MEDIAN_VARIANCE * float(np.log(per_round * tokens[1] / tokens[0]).var(ddof=1)) / num_rounds
        parts = [(rounds, num_rounds - 1)]
        per_token = Figure(token_batched, log_normal(token_batched, *parts))
        if len(teacher.answer_tokens) > 1:
            written = log_mean_variance((teacher.answer_tokens, 1), (student.answer_tokens, -1))
            parts.append((written, len(teacher.answer_tokens) - 1))
        per_answer = Figure(batched, log_normal(batched, *parts))
    else:
        per_token, per_answer = Figure(token_batched, None, why_batched), Figure(batched, None, why_batched)
    if not why_single:
        seconds, tokens = _columns(teacher.answers_single, student.answers_single, num_single)
        alone = Figure(
            single, log_normal(single, (log_mean_variance((seconds[0], 1), (seconds[1], -1)), num_single - 1))
        )
        variance = log_mean_variance((tokens[1], 1), (seconds[1], -1), (tokens[0], -1), (seconds[0], 1))
        token_alone = Figure(token_single, log_normal(token_single, (variance, num_single - 1)))
    else:
        alone, token_alone = Figure(single, None, why_single), Figure(token_single, None, why_single)
    return Speedups(per_answer, alone, per_token, token_alone, num_rounds, num_single)


def latency_95(speed: Speed) -> Figure:
    """The 95th percentile of the latency with its interval, in seconds; see `percentile_95`."""
    if speed.latency_p95_s is None:
        return Figure(None, None, f"no 95th percentile from {speed.num_latencies} answers; it takes {NUM_LATENCIES}")
    if len(speed.latencies_s) < 2:
        return Figure(speed.latency_p95_s, None, _OLD)
    low, high = percentile_95(speed.latencies_s)
    # The percentile of the sample itself may lie outside if one answer was very slow.
    return Figure(speed.latency_p95_s, (min(low, speed.latency_p95_s), max(high, speed.latency_p95_s)))


_OLD = "an earlier version timed it and kept no single timings; remove speed.json and give the command again"


def _not_paired(teacher: Speed, student: Speed) -> str:
    if not teacher.in_turns_with and not student.in_turns_with:
        return _OLD
    return "" if teacher.in_turns_with == student.in_turns_with else "the models did not take turns"


def _columns(
    teacher: Sequence[Pair], student: Sequence[Pair], number: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Seconds, and tokens, of the first rounds or prompts: the teacher's, then the student's."""
    both = [np.array(pairs[:number]) for pairs in (teacher, student)]
    return [each[:, 0] for each in both], [each[:, 1] for each in both]
