"""Answers of a model as rows of tokens, to look at its probabilities again: prompts, completions -> rows and counts.

    rows, counts = answer_rows(run.path("test.jsonl"), run.path("eval/greedy.completions.jsonl"), tokenizer)

Unlike a training set, this keeps answers that the token limit cut: what is there is the model's own text. Only the end of
the turn, which it did not write, is left out. Answers are tokenized from their text, which in rare cases gives other tokens
than those that were generated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distill_lab.chat import encode_turns
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import UserError
from distill_lab.generation.completions import read_completions
from distill_lab.train.packing import Row
from distill_lab.train.rows import REFUSED
from distill_lab.types import Completion, Counts, Message

NO_PROMPT, ERROR, EMPTY, IN_THINKING = "no prompt", "error", "empty", "cut inside the thinking"


def answer_rows(
    prompts: Path, completions: Path, tokenizer: PreTrainedTokenizerBase, *, thinking: bool | None = None
) -> tuple[list[Row], Counts]:
    """A row per answer, in the order of the completions. Raises DataError naming a malformed row's line."""
    asked = {prompt.id: prompt for prompt in read_prompts(prompts)}
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for completion, _, _ in read_completions(completions):
        prompt = asked.get(completion.id)
        reason = NO_PROMPT if prompt is None else _unusable(completion)
        if prompt is None or reason:
            dropped[reason] += 1
            continue
        answer: Message = {"role": "assistant", "content": completion.content}
        if completion.thinking:
            answer["thinking"] = completion.thinking
        try:
            [encoded] = encode_turns(tokenizer, prompt.messages, [answer], thinking=thinking)
        except UserError:
            dropped[REFUSED] += 1
            continue
        if completion.finish_reason == "length":
            last = max(place for place, learned in enumerate(encoded.loss_mask) if learned)
            encoded = replace(encoded, input_ids=encoded.input_ids[:last], loss_mask=encoded.loss_mask[:last])
        if any(encoded.loss_mask):
            rows.append(Row.from_encoded(encoded))
        else:
            dropped[EMPTY] += 1
    return rows, Counts(len(rows) + dropped.total(), len(rows), dict(dropped))


def _unusable(answer: Completion) -> str:
    """Why an answer cannot be looked at again; empty if it can."""
    if answer.error:
        return ERROR
    if answer.content.strip():
        return ""
    # The template would end the thinking, and the model did not.
    return IN_THINKING if answer.thinking and answer.finish_reason == "length" else EMPTY
