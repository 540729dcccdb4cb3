"""chat.py against real tokenizers and templates; templates with {% generation %} markers serve as an oracle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distill_lab.chat import (
    Encoded,
    encode,
    encode_turns,
    end_token_ids,
    inspect_template,
    opens_thinking,
    prompt_ids,
    split_thinking,
)
from distill_lab.errors import UserError
from distill_lab.types import Message
from tests.helpers import FAMILY

NAMES = ("qwen2.5", "qwen3", "minimind", "tiny")
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
THINKING = (None, True, False)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, thinking: str | None = None) -> Message:
    return {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})


SYSTEM: Message = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def load(shared_data: Path) -> Any:
    loaded: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(name: str) -> PreTrainedTokenizerBase:
        if name not in loaded:
            folder = FAMILY / "teacher" if name == "tiny" else shared_data / "tokenizers" / name
            loaded[name] = AutoTokenizer.from_pretrained(folder)
        return loaded[name]

    return tokenizer


@pytest.fixture(scope="module")
def with_template(shared_data: Path) -> Any:
    """The smallest real tokenizer with another model's template and the special tokens that template writes."""
    special = {
        "deepseekv3": ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "gemma3": ["<end_of_turn>", "<start_of_turn>"],
        "llama3": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "llama3_1": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "phi3": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
    }

    def tokenizer(template: str) -> PreTrainedTokenizerBase:
        made = PreTrainedTokenizerFast.from_pretrained(shared_data / "tokenizers" / "minimind")
        made.add_special_tokens({"bos_token": "<s>"})
        if template in special:
            made.add_special_tokens({"additional_special_tokens": special[template]})
            made.eos_token = special[template][0]
        made.chat_template = (shared_data / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
        return made

    return tokenizer


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


# --- against an oracle that knows the span from markers in the template


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


# --- properties on random conversations


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


def plain(message: Message) -> Message:
    return {key: text for key, text in message.items() if key != "thinking"}


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
