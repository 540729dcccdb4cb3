"""chat.py on random conversations: real templates, and templates with {% generation %} markers as an oracle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from distill_lab.chat import (
    encode,
    encode_turns,
    inspect_template,
    prompt_ids,
    split_thinking,
)
from distill_lab.errors import UserError
from distill_lab.types import Message
from tests.conversations import (
    NAMES,
    THINKING,
    plain,
    random_conversation,
    spans,
)

TEMPLATES = (
    "deepseekv3",
    "gemma3",
    "llama3",
    "llama3_1",
    "phi3",
    "qwen2_5",
    "qwen3",
    "qwen3_5_nothink",
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_instruct_2507",
)


def oracle(
    tokenizer: PreTrainedTokenizerBase, template: str, prompt: list[Message], completion: list[Message]
) -> tuple[list[int], list[bool]]:
    messages = []
    for message in [*prompt, *completion]:
        row = {key: value for key, value in message.items() if key != "thinking"}
        if "thinking" in message:
            row["reasoning_content"] = message["thinking"]
        messages.append(row)
    found: Any = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(found["input_ids"]), [bool(flag) for flag in found["assistant_masks"]]


@pytest.mark.parametrize(("name", "template", "lead"), [("qwen3", "qwen3", 0), ("qwen2.5", "qwen2_5", 1)])
def test_the_span_is_the_one_the_marked_template_names(
    load: Any, shared_data: Path, name: str, template: str, lead: int
) -> None:
    """`lead`: tokens the marked template counts as generated though the prompt ends with them (a newline).

    The newline it marks after each end token is no part of a generation either.
    """
    tokenizer, generator = load(name), random.Random(7)
    marked = (shared_data / "chat_templates" / f"{template}_training.jinja").read_text(encoding="utf-8")
    for _ in range(60):
        prompt, completion = random_conversation(generator, traces=name == "qwen3")
        # History turns and leading or trailing newlines are written differently on purpose: see the tests above.
        prompt = [message for message in prompt if message["role"] != "assistant"][-2:]
        completion = [{key: text.strip() for key, text in message.items()} for message in completion]
        ids, mask = oracle(tokenizer, marked, prompt, completion)
        ours = encode(tokenizer, prompt, completion)
        expected, place = [False] * len(ids), 0
        while place < len(ids):
            if mask[place]:
                end = place
                while end < len(ids) and mask[end]:
                    end += 1
                expected[place + lead : end - 1] = [True] * (end - 1 - place - lead)
                place = end
            place += 1
        assert ours.input_ids == ids[: len(ours.input_ids)]
        assert ours.loss_mask == expected[: len(ours.loss_mask)]
        assert not any(expected[len(ours.loss_mask) :])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("thinking", THINKING)
def test_properties_of_encode(load: Any, name: str, thinking: bool | None) -> None:
    tokenizer, generator = load(name), random.Random(f"{name}{thinking}")
    end = inspect_template(tokenizer).end_id
    for _ in range(25):
        prompt, completion = random_conversation(generator, traces=name != "minimind")
        answers = [message for message in completion if message["role"] == "assistant"]
        encoded = encode(tokenizer, prompt, completion, thinking=thinking)
        first = prompt_ids(tokenizer, prompt, thinking=thinking)
        assert encoded.input_ids[: len(first)] == first
        assert encoded.loss_mask[: len(first)] == [False] * len(first)
        assert encoded.loss_mask[len(first)]

        found = spans(encoded)
        assert len(found) == len(answers)
        for span, message in zip(found, answers, strict=True):
            assert span[-1] == end
            assert end not in span[:-1]
            trace = message.get("thinking") if thinking is not False else None
            text = tokenizer.decode(span[:-1], skip_special_tokens=False)
            assert split_thinking(text)[0] == trace
            assert split_thinking(text)[1].lstrip() == message["content"].lstrip()

        exact = encode_turns(tokenizer, prompt, completion, thinking=thinking)
        assert [span for sequence in exact for span in spans(sequence)] == found
        place = 0
        for number, message in enumerate(completion):
            if message["role"] == "assistant":
                before = [turn if thinking is not False else plain(turn) for turn in [*prompt, *completion[:number]]]
                context = prompt_ids(tokenizer, before, thinking=thinking) + found[place]
                assert any(sequence.input_ids[: len(context)] == context for sequence in exact)
                place += 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_properties_hold_or_are_refused_for_every_template(with_template: Any, template: str) -> None:
    tokenizer, generator = with_template(template), random.Random(template)
    end, refused = inspect_template(tokenizer).end_id, 0
    for _ in range(25):
        prompt, completion = random_conversation(generator, traces=True)
        if template == "gemma3":
            prompt = [message for message in prompt if message["role"] != "system"]
        try:
            encoded = encode(tokenizer, prompt, completion)
        except UserError:
            refused += 1
            continue
        first = prompt_ids(tokenizer, prompt)
        assert encoded.input_ids[: len(first)] == first
        assert not any(encoded.loss_mask[: len(first)])
        found = spans(encoded)
        answers = [message for message in completion if message["role"] == "assistant"]
        assert len(found) == len(answers)
        for span, message in zip(found, answers, strict=True):
            assert span[-1] == end
            assert end not in span[:-1]
            assert message["content"].strip() in tokenizer.decode(span, skip_special_tokens=False)
            assert message.get("thinking", "").strip() in tokenizer.decode(span, skip_special_tokens=False)
        for user_turn in (message for message in completion[1:] if message["role"] == "user"):
            assert user_turn["content"].strip() in tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    # DeepSeek's prompt opens thinking that its conversations never show; Qwen3.5's small models close it by default.
    assert refused == 25 if template == "deepseekv3" else (0 < refused < 25) == (template == "qwen3_5_nothink")
