"""Several models' answers to the same prompts: prompts, models by label -> answers by label.

models = {"Teacher": "tiny:teacher", "System 1": "runs/s1/student"}
print(render_comparison(compare_models(["Why is the sky blue?"], models)))
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError
from distill_lab.generation.ask import user_text
from distill_lab.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several models answered to one prompt."""

    prompt: str
    answers: Mapping[str, Completion]
    """Label -> answer, in the order the models were given; missing models are not in it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Label -> path of each model that was not found."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Label -> why it was not found: no such directory, or a hub that cannot be reached."""


def compare_models(
    prompts: Sequence[str],
    models: Mapping[str, str | None],
    *,
    step_by_step: Collection[str] = (),
    max_new_tokens: int = 128,
) -> list[Comparison]:
    """Send every prompt to every model, greedily, each as one user message, one model in memory at a time.

    models: label -> path or name; None leaves that label out. step_by_step: labels of the models that get the instruction
    to think step by step, with their thinking as part of the answer; the others answer at once. A model that cannot be
    found is listed in `missing` and skipped. Raises ModelError if a model is found but does not load.
    """
    from distill_lab.device import memory_returned
    from distill_lab.generation.engines import complete, load_engine
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.models.names import api_engine

    answers: list[dict[str, Completion]] = [{} for _ in prompts]
    missing: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for label, path in models.items():
        if path is None:
            continue
        config = ModelConfig(model=path)
        if not api_engine(path) and not Path(path).expanduser().exists():
            # A hub id or tiny: name: whether there is such a model shows in the first files it needs.
            try:
                load_tokenizer(config)
            except ModelError as error:
                missing[label], reasons[label] = path, error.reason
                continue
        steps = label in step_by_step
        texts = [user_text(prompt, steps=steps) for prompt in prompts]
        asked = [Prompt(str(index), [{"role": "user", "content": text}]) for index, text in enumerate(texts)]
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, thinking=None if steps or api_engine(path) else False)
        with memory_returned():
            for completion in complete(load_engine(config, EngineConfig()), asked, sampling):
                answers[int(completion.id)][label] = with_thinking(completion) if steps else completion
    return [Comparison(prompt, found, missing, reasons) for prompt, found in zip(prompts, answers, strict=True)]


def with_thinking(answer: Completion) -> Completion:
    """The answer with its thinking at the start of its content: the steps are what a System 2 student has to show."""
    parts = (part.strip() for part in (answer.thinking or "", answer.content) if part.strip())
    return replace(answer, content="\n".join(parts))
