"""Ask an already loaded model; completions come back in input order.

    (answer,) = ask(model, tokenizer, [("Make this upper case: pear", "")], SamplingConfig())

Uses the model's own chat template, as in training: a student answers poorly in a format it was not trained on. Only
tokenizers without a template get the text of `plain_prompt`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_lab.config import STEP_BY_STEP, SamplingConfig
from distill_lab.types import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[str, str]],
    sampling: SamplingConfig,
    *,
    steps: bool = False,
    batch_size: int = 0,
) -> list[Completion]:
    """The answers to (instruction, input) pairs.

    steps: ask for steps and leave thinking to the template; otherwise the model answers without thinking. Raises UserError
    like the engine.
    """
    from distill_lab.device import memory_returned
    from distill_lab.generation.engines.transformers import TransformersEngine

    if tokenizer.chat_template:
        texts = [user_text(*pair, steps=steps) for pair in questions]
        sampling = sampling.model_copy(update={"thinking": None if steps else False})
    else:
        texts = [plain_prompt(*pair, steps=steps) for pair in questions]
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
        # Without a template there is no end-of-turn token: such a model would continue with the next question.
        sampling = sampling.model_copy(update={"stop": (*sampling.stop, "\nUser:")})
    prompts = [Prompt(str(index), [{"role": "user", "content": text}]) for index, text in enumerate(texts)]
    with memory_returned():
        answers = TransformersEngine(model, tokenizer, batch_size=batch_size).generate(prompts, sampling)
        return sorted(answers, key=lambda answer: int(answer.id))


def user_text(instruction: str, input_text: str = "", *, steps: bool = False) -> str:
    """The user's message, with instruction and input joined as the adapters join a row's fields."""
    text = "\n\n".join(part for part in (instruction, input_text) if part.strip())
    return f"{text}\n{STEP_BY_STEP}" if steps else text


def plain_prompt(instruction: str, input_text: str = "", *, steps: bool = False) -> str:
    """The same as plain text, for models without a chat template."""
    lines = [f"User: {instruction}"]
    if input_text:
        lines.append(f"Input: {input_text}")
    if steps:
        lines.append(STEP_BY_STEP)
    return "\n".join([*lines, "Assistant:"])
