"""chat.py against real tokenizers and templates."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill_lab.chat import (
    encode,
    encode_turns,
    end_token_ids,
    opens_thinking,
    prompt_ids,
    split_thinking,
)
from distill_lab.errors import UserError
from distill_lab.types import Message
from tests.conversations import (
    NAMES,
    SYSTEM,
    THINKING,
    assistant,
    random_conversation,
    reference_ids,
    spans,
    texts,
    user,
)

# --- prompts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("thinking", THINKING)
def test_prompt_ids_are_those_of_the_template(load: Any, name: str, thinking: bool | None) -> None:
    tokenizer, generator = load(name), random.Random(name)
    settings = {} if thinking is None else {"enable_thinking": thinking}
    for _ in range(20):
        messages, _ = random_conversation(generator, traces=False)
        assert prompt_ids(tokenizer, messages, thinking=thinking) == reference_ids(tokenizer, messages, **settings)


def test_the_prompt_passes_thinking_on_to_the_template(load: Any) -> None:
    prompts = [load("qwen3").decode(prompt_ids(load("qwen3"), [user("Hi")], thinking=choice)) for choice in THINKING]
    opening = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [opening, opening, opening + "<think>\n\n</think>\n\n"]


def test_thinking_of_a_tool_step_stays_in_the_prompt(load: Any) -> None:
    tokenizer = load("qwen3")
    messages = [user("2+2?"), assistant("calc(2+2)", "I need a tool."), {"role": "tool", "content": "4"}]
    plain = [user("2+2?"), {**assistant("calc(2+2)"), "reasoning_content": "I need a tool."}, messages[2]]
    assert prompt_ids(tokenizer, messages) == reference_ids(tokenizer, plain)
    assert "I need a tool." in tokenizer.decode(prompt_ids(tokenizer, messages))


# --- what is trained, literally


@pytest.mark.parametrize(
    ("name", "thinking", "message", "prompt_end", "trained"),
    [
        ("qwen2.5", None, assistant("Paris."), "<|im_start|>assistant\n", "Paris.<|im_end|>"),
        ("qwen2.5", None, assistant("4", "2+2"), "assistant\n", "<think>\n2+2\n</think>\n\n4<|im_end|>"),
        ("qwen2.5", False, assistant("4", "2+2"), "assistant\n", "4<|im_end|>"),
        ("qwen3", None, assistant("4", "2+2"), "assistant\n", "<think>\n2+2\n</think>\n\n4<|im_end|>"),
        ("qwen3", True, assistant("4", "2+2"), "assistant\n", "<think>\n2+2\n</think>\n\n4<|im_end|>"),
        ("qwen3", None, assistant("4"), "assistant\n", "<think>\n\n</think>\n\n4<|im_end|>"),
        ("qwen3", False, assistant("4"), "assistant\n<think>\n\n</think>\n\n", "4<|im_end|>"),
        ("qwen3", False, assistant("4", "2+2"), "assistant\n<think>\n\n</think>\n\n", "4<|im_end|>"),
        ("minimind", None, assistant("4"), "assistant\n<think>\n\n</think>\n\n", "4<|im_end|>"),
        ("tiny", None, assistant("4", "2+2"), "assistant\n", "<think>\n2+2\n</think>\n\n4<|im_end|>"),
        ("tiny", False, assistant("4"), "assistant\n<think>\n\n</think>\n\n", "4<|im_end|>"),
    ],
)
def test_trained_span(
    load: Any, name: str, thinking: bool | None, message: Message, prompt_end: str, trained: str
) -> None:
    tokenizer = load(name)
    encoded = encode(tokenizer, [SYSTEM, user("2+2?")], [message], thinking=thinking)
    assert texts(tokenizer, encoded) == [trained]
    untrained = [token for token, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True) if not flag]
    assert untrained == prompt_ids(tokenizer, [SYSTEM, user("2+2?")], thinking=thinking)
    assert tokenizer.decode(untrained).endswith(prompt_end)


@pytest.mark.parametrize(
    ("template", "thinking", "message", "trained"),
    [
        ("llama3", None, assistant("Paris."), "Paris.<|eot_id|>"),
        ("llama3_1", None, assistant("Paris."), "Paris.<|eot_id|>"),
        ("gemma3", None, assistant("Paris."), "Paris.<end_of_turn>"),
        ("phi3", None, assistant("Paris."), "Paris.<|end|>"),
        ("qwen3_instruct_2507", None, assistant("Paris."), "Paris.<|im_end|>"),
        ("qwen3_5_nothink", None, assistant("4"), "4<|im_end|>"),
        ("qwen3_5_nothink", True, assistant("4", "2+2"), "2+2\n</think>\n\n4<|im_end|>"),
        ("qwen3_5_think", None, assistant("4", "2+2"), "2+2\n</think>\n\n4<|im_end|>"),
        ("qwen3_5_think", None, assistant("4"), "\n</think>\n\n4<|im_end|>"),
        ("qwen3_6", None, assistant("4", "2+2"), "2+2\n</think>\n\n4<|im_end|>"),
        ("qwen3_6", False, assistant("4", "2+2"), "4<|im_end|>"),
    ],
)
def test_trained_span_of_other_templates(
    with_template: Any, template: str, thinking: bool | None, message: Message, trained: str
) -> None:
    tokenizer = with_template(template)
    encoded = encode(tokenizer, [user("2+2?")], [message], thinking=thinking)
    assert texts(tokenizer, encoded) == [trained]
    assert encoded.input_ids[: encoded.loss_mask.index(True)] == prompt_ids(
        tokenizer, [user("2+2?")], thinking=thinking
    )


def test_several_turns_of_qwen2_5_are_one_exact_sequence(load: Any) -> None:
    tokenizer = load("qwen2.5")
    prompt = [user("a"), assistant("not trained"), user("b")]
    completion = [assistant("B"), user("c"), assistant("C"), user("left over")]
    encoded = encode(tokenizer, prompt, completion)
    assert texts(tokenizer, encoded) == ["B<|im_end|>", "C<|im_end|>"]
    assert encode_turns(tokenizer, prompt, completion) == [encoded]
    assert "left over" not in tokenizer.decode(encoded.input_ids)


def test_several_turns_of_qwen3_see_what_generation_would_show_them(load: Any) -> None:
    tokenizer = load("qwen3")
    prompt, completion = [user("a")], [assistant("A", "first"), user("b"), assistant("B", "second")]
    whole = ["<think>\nfirst\n</think>\n\nA<|im_end|>", "<think>\nsecond\n</think>\n\nB<|im_end|>"]

    one, two = encode_turns(tokenizer, prompt, completion)
    assert texts(tokenizer, one) + texts(tokenizer, two) == whole
    start = two.loss_mask.index(True)
    assert two.input_ids[:start] == prompt_ids(tokenizer, [*prompt, *completion[:2]])
    assert "first" not in tokenizer.decode(two.input_ids)

    joined = encode(tokenizer, prompt, completion)
    assert texts(tokenizer, joined) == whole
    assert joined.input_ids[: len(one.input_ids)] == one.input_ids
    between = joined.input_ids[len(one.input_ids) : len(joined.input_ids) - sum(two.loss_mask)]
    assert tokenizer.decode(between) == "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"


# --- hard cases


def test_a_newline_at_the_start_of_an_answer_does_not_merge_into_the_prompt(load: Any) -> None:
    tokenizer = load("qwen2.5")
    encoded = encode(tokenizer, [user("Hi")], [assistant("\n\nHello")])
    first = prompt_ids(tokenizer, [user("Hi")])
    assert encoded.input_ids[: len(first)] == first
    assert texts(tokenizer, encoded) == ["\n\nHello<|im_end|>"]


def test_an_answer_about_the_end_token_spells_it_out(load: Any) -> None:
    tokenizer = load("qwen2.5")
    content = "ChatML ends a turn with <|im_end|> and so on."
    encoded = encode(tokenizer, [user("How does ChatML end a turn?")], [assistant(content)])
    (span,) = spans(encoded)
    assert span.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert tokenizer.decode(span[:-1]) == content


def test_a_prompt_that_closes_thinking_refuses_an_answer_with_thinking(load: Any) -> None:
    with pytest.raises(UserError, match=r"minimind.*does not put the answer right after the prompt"):
        encode(load("minimind"), [user("2+2?")], [assistant("4", "two and two")])


def test_a_template_of_another_tokenizer_is_refused(load: Any, shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind")
    for template in ("phi3", "gemma3", "llama3_1"):
        tokenizer.chat_template = (shared_data / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
        with pytest.raises(UserError, match=r"minimind.*not a special token of this tokenizer"):
            encode(tokenizer, [user("Hi")], [assistant("Hello")])


def test_no_template_at_all_is_refused(shared_data: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt-neox-20b")
    with pytest.raises(UserError, match=r"gpt-neox-20b has no chat template"):
        prompt_ids(tokenizer, [user("Hi")])


def test_what_a_template_refuses_is_said(with_template: Any) -> None:
    with pytest.raises(UserError, match=r"rejects the roles \[user, user\].*alternate"):
        prompt_ids(with_template("gemma3"), [user("a"), user("b")])


def test_a_completion_without_an_answer_is_refused(load: Any) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        encode(load("qwen3"), [user("a")], [user("b")])


# --- end tokens


def test_end_tokens(load: Any, shared_data: Path) -> None:
    from transformers import GenerationConfig

    base = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen2.5")
    base.eos_token = "<|endoftext|>"
    assert end_token_ids(load("qwen2.5")) == [151645]
    assert end_token_ids(load("qwen2.5"), GenerationConfig(eos_token_id=[151645, 151643])) == [151645, 151643]
    assert end_token_ids(load("qwen2.5"), GenerationConfig(eos_token_id=151643)) == [151645, 151643]
    assert end_token_ids(base) == [151645, 151643]
    assert end_token_ids(load("minimind")) == [2]


def test_no_end_token_is_refused(shared_data: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_data / "tokenizers" / "gpt-neox-20b")
    assert tokenizer.eos_token_id is None
    with pytest.raises(UserError, match="no end token is defined"):
        end_token_ids(tokenizer)


# --- thinking


@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("Paris.", None, "Paris."),
        ("  indented\n", None, "  indented\n"),
        ("", None, ""),
        ("<think>\n2+2\n</think>\n\n4", "2+2", "4"),
        ("\n<think>2+2</think> 4", "2+2", "4"),
        ("<think>\n\n</think>\n\n4", None, "4"),
        ("<think></think>4", None, "4"),
        ("2+2\n</think>\n\n4", "2+2", "4"),
        ("\n</think>\n\n4", None, "4"),
        ("<think>\n2+2 and then", "2+2 and then", ""),
        ("<think>\n", None, ""),
        ("<think>a\n\nb</think>\n\n    return 1\n", "a\n\nb", "    return 1\n"),
        ("<thinking>\n2+2\n</thinking>\n4", "2+2", "4"),
        (
            "<|begin_of_thought|>\n\n2+2\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>",
            "2+2",
            "4",
        ),
        ("<|begin_of_thought|>2+2<|end_of_thought|>\n4", "2+2", "4"),
        ("<|begin_of_thought|>2+2", "2+2", ""),
        ("2+2<|end_of_thought|><|begin_of_solution|>4", "2+2", "4"),
        ("<|begin_of_solution|>\n4\n<|end_of_solution|>", None, "4"),
        ("Write <think> and </think> around it.", None, "Write <think> and </think> around it."),
        ("<think>你好</think>世界", "你好", "世界"),
    ],
)
def test_split_thinking(text: str, thinking: str | None, content: str) -> None:
    assert split_thinking(text) == (thinking, content)


def test_a_cut_completion_of_an_opened_prompt_is_all_thinking(with_template: Any) -> None:
    tokenizer = with_template("qwen3_5_think")
    for choice, opened in ((None, True), (True, True), (False, False)):
        assert opens_thinking(tokenizer, prompt_ids(tokenizer, [user("Hi")], thinking=choice)) is opened
    assert split_thinking("Let me see", opened=True) == ("Let me see", "")
    assert split_thinking("Let me see\n</think>\n\n4", opened=True) == ("Let me see", "4")


def test_every_real_trace_comes_back_from_a_template(load: Any, shared_data: Path) -> None:
    import json

    rows = json.loads((shared_data / "cot" / "r1_sample_openrouter.json").read_text(encoding="utf-8"))
    assert len(rows) == 5
    for row in rows:
        content, trace = row["message_content"], row["message_thinking"].strip("\n")
        encoded = encode(load("qwen3"), [user(row["problem"])], [assistant(content, trace)])
        (text,) = texts(load("qwen3"), encoded)
        assert split_thinking(text.removesuffix("<|im_end|>")) == (trace or None, content.lstrip("\n"))
