"""Conversations of chat tests: turns, random ones in many scripts, and what of them is trained."""

from __future__ import annotations

import random
from typing import Any

from transformers import PreTrainedTokenizerBase

from distill_lab.chat import Encoded
from distill_lab.types import Message

NAMES = ("qwen2.5", "qwen3", "minimind", "tiny")
THINKING = (None, True, False)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, thinking: str | None = None) -> Message:
    return {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})


SYSTEM: Message = {"role": "system", "content": "Be brief."}


def reference_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **settings: Any) -> list[int]:
    found: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, **settings)
    return list(found) if isinstance(found, list) else list(found["input_ids"])


def spans(encoded: Encoded) -> list[list[int]]:
    """The trained tokens, one list per run of them."""
    found: list[list[int]] = []
    for place, (token, trained) in enumerate(zip(encoded.input_ids, encoded.loss_mask, strict=True)):
        if trained and (place == 0 or not encoded.loss_mask[place - 1]):
            found.append([])
        if trained:
            found[-1].append(token)
    return found


def texts(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> list[str]:
    return [str(tokenizer.decode(span, skip_special_tokens=False)) for span in spans(encoded)]


ALPHABETS = (
    "abc XYZ",
    "\n\n \t",
    "0123456789 +-*/=",
    "你好，世界。",
    "Привет, мир",
    "مرحبا",
    "🙂👩‍👩‍👧é",
    "<>|/{}[]'\"\\",
    "    def f():\n",
)


def random_text(generator: random.Random) -> str:
    text = "".join(
        "".join(generator.choices(generator.choice(ALPHABETS), k=generator.randint(1, 12)))
        for _ in range(generator.randint(1, 6))
    )
    return text if text.strip() else text + "x"


def random_conversation(generator: random.Random, *, traces: bool) -> tuple[list[Message], list[Message]]:
    prompt = [SYSTEM] if generator.random() < 0.5 else []
    for _ in range(generator.choice((0, 0, 1))):
        prompt += [user(random_text(generator)), assistant(random_text(generator))]
    prompt.append(user(random_text(generator)))
    completion: list[Message] = []
    for turn in range(generator.choice((1, 1, 2, 3))):
        if turn:
            completion.append(user(random_text(generator)))
        trace = random_text(generator).strip() if traces and generator.random() < 0.6 else None
        completion.append(assistant(random_text(generator), trace))
    return prompt, completion


def plain(message: Message) -> Message:
    return {key: text for key, text in message.items() if key != "thinking"}
