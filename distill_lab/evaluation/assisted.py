"""Wall time of speculative decoding with transformers: the target alone and with each draft, prompt by prompt in turns.

    times = time_assisted(target, {"draft": model}, prompts, drafted={"draft": 4}, max_new_tokens=128, end_ids=[2], pad_id=0)
    times.speedups["draft"].value

Greedy, one prompt at a time, in transformers' assisted generation: what a person who runs it on this machine waits for.
Servers such as vLLM batch and schedule otherwise, and gain otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from distill_lab import activity
from distill_lab.evaluation.goals import Figure
from distill_lab.evaluation.intervals import log_mean_variance, log_normal

ALONE = ""
"""The target without a draft."""


class Generating(Protocol):
    """A causal language model: `PreTrainedModel` has no `generate`, its subclasses have."""

    def generate(
        self,
        inputs: torch.Tensor,
        *,
        attention_mask: torch.Tensor,
        generation_config: GenerationConfig,
        assistant_model: PreTrainedModel | None,
    ) -> torch.Tensor:
        """Prompts (batch by tokens) -> the same with what follows."""
        ...


@dataclass(frozen=True, slots=True)
class AssistedTimes:
    """What was timed."""

    seconds: Mapping[str, Sequence[float]]
    """Of each prompt, by draft; ALONE: of the target without one."""
    tokens: Sequence[int]
    """Written by the target alone, for each prompt."""
    same: Mapping[str, int]
    """Answers with a draft that are the target's own, token for token: greedy decoding changes nothing but near ties."""
    speedups: Mapping[str, Figure]
    """Seconds of the target alone over seconds with the draft, all prompts together."""


@torch.inference_mode()
def time_assisted(
    target: PreTrainedModel,
    drafts: Mapping[str, PreTrainedModel],
    prompts: Sequence[Sequence[int]],
    *,
    drafted: Mapping[str, int],
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
) -> AssistedTimes:
    """Time the answers to `prompts`, token ids; the first one warms everything up and is asked once more.

    target, drafts: models whose heads have the same number of rows, as assisted generation requires. drafted: tokens per
    pass, by draft.
    """

    model = cast(Generating, target)

    def answer(name: str, ids: Sequence[int]) -> tuple[float, list[int]]:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(end_ids), pad_token_id=pad_id
        )
        assistant = None
        if name != ALONE:
            assistant = drafts[name]
            # Read from the assistant's own settings; a threshold above 0 would end drafts early and adapt while timing.
            assistant.generation_config = GenerationConfig(
                num_assistant_tokens=drafted[name],
                num_assistant_tokens_schedule="constant",
                assistant_confidence_threshold=0.0,
                pad_token_id=pad_id,
            )
        given = torch.tensor([list(ids)], device=target.device)
        start = time.perf_counter()
        out = model.generate(
            given, attention_mask=torch.ones_like(given), generation_config=settings, assistant_model=assistant
        )
        written = out[0, given.shape[1] :].tolist()  # waits for the device
        return time.perf_counter() - start, written

    names = [ALONE, *drafts]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns of its own way of calling the assistant
    try:
        for name in names:
            answer(name, prompts[0])
        return _in_turns(names, prompts, answer)
    finally:
        transformers_logging.set_verbosity(verbosity)


@torch.inference_mode()
def token_seconds(model: PreTrainedModel, ids: Sequence[int], *, number: int = 8) -> float:
    """Median seconds of `number` single tokens after the prompt `ids`: what a pass of the model costs here."""
    given = torch.tensor([list(ids)], device=model.device)
    out = model(given, use_cache=True)
    seconds = []
    for _ in range(number + 1):
        start = time.perf_counter()
        out = model(given[:, -1:], past_key_values=out.past_key_values, use_cache=True)
        out.logits[0, -1, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _in_turns(
    names: Sequence[str],
    prompts: Sequence[Sequence[int]],
    answer: Callable[[str, Sequence[int]], tuple[float, list[int]]],
) -> AssistedTimes:
    drafts = [name for name in names if name != ALONE]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tokens: list[int] = []
    same = dict.fromkeys(drafts, 0)
    for number, ids in enumerate(prompts):
        activity.report("timing answers with and without a draft", number + 1, len(prompts))
        found: dict[str, list[int]] = {}
        for name in names if number % 2 == 0 else names[::-1]:
            taken, found[name] = answer(name, ids)
            seconds[name].append(taken)
        tokens.append(len(found[ALONE]))
        for name in drafts:
            same[name] += found[name] == found[ALONE]
    return AssistedTimes(seconds, tokens, same, {name: _speedup(seconds[ALONE], seconds[name]) for name in drafts})


def _speedup(alone: Sequence[float], with_draft: Sequence[float]) -> Figure:
    ratio = sum(alone) / sum(with_draft)
    if len(alone) < 2:
        return Figure(ratio, None, "one prompt was timed")
    variance = log_mean_variance((alone, 1), (with_draft, -1))
    return Figure(ratio, log_normal(ratio, (variance, len(alone) - 1)), "")
