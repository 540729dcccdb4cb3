"""chat.py on templates of one line: what reaches the template, what is trained, and what each refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer, GenerationConfig

from distill_lab import chat
from distill_lab.chat import (
    answer_text,
    encode,
    encode_turns,
    end_token_ids,
    is_trained,
    opens_thinking,
    prompt_ids,
    split_thinking,
)
from distill_lab.errors import UserError
from distill_lab.tiny import FAMILY
from distill_lab.types import Message
from tests.conversations import assistant, texts, user

PLAIN = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
FIELDS = PLAIN.replace("{{", "{% if 'weight' in m %}weight {% endif %}{{ m.role }}: {{ m.reasoning_content }} {{")


@pytest.fixture
def written() -> Callable[[str], Any]:
    """`written(template)` -> the tiny tokenizer with this chat template."""

    def tokenizer(template: str) -> Any:
        made = AutoTokenizer.from_pretrained(FAMILY / "student")
        made.chat_template = template
        return made

    return tokenizer


def text_of(tokenizer: Any, messages: list[Message], **settings: Any) -> str:
    return tokenizer.decode(prompt_ids(tokenizer, messages, **settings))


def test_a_template_gets_role_content_and_thinking_and_no_weight(written: Callable[[str], Any]) -> None:
    tokenizer = written(FIELDS)
    asked: Message = {"role": "user", "content": "Hi", "weight": 0}
    assert text_of(tokenizer, [asked]) == "user:  Hi<|im_end|>"
    for name in ("thinking", "reasoning_content"):
        said: Message = {"role": "assistant", "content": "4", name: "2+2"}
        assert text_of(tokenizer, [said]) == "assistant: 2+2 4<|im_end|>"
    choice = written("{{ enable_thinking }}")
    assert [text_of(choice, [user("Hi")], thinking=thinking) for thinking in (None, True, False)] == [
        "",
        "True",
        "False",
    ]


def test_thinking_under_either_name_is_trained_alike(written: Callable[[str], Any]) -> None:
    opening = (
        "{% for m in messages %}{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    )
    for template in (PLAIN, opening + "{{ m.content }}<|im_end|>{% endfor %}"):
        tokenizer = written(template)
        for name in ("thinking", "reasoning_content"):
            said: Message = {"role": "assistant", "content": "4", name: "2+2"}
            encoded = encode(tokenizer, [user("2+2?")], [said])
            assert texts(tokenizer, encoded) == ["<think>\n2+2\n</think>\n\n4<|im_end|>"]
            assert texts(tokenizer, encode(tokenizer, [user("2+2?")], [said], thinking=False)) == ["4<|im_end|>"]
    # Line breaks around the thinking are the tags'.
    encoded = encode(written(PLAIN), [user("2+2?")], [assistant("4", "\n2+2\n\n")])
    assert texts(tokenizer, encoded) == ["<think>\n2+2\n</think>\n\n4<|im_end|>"]


@pytest.mark.parametrize(("thinking", "text"), [(None, "4"), ("", "4"), ("2+2", "<think>\n2+2\n</think>\n\n4")])
def test_an_answer_as_one_text(thinking: str | None, text: str) -> None:
    assert answer_text("4", thinking) == text
    assert split_thinking(text) == (thinking or None, "4")


@pytest.mark.parametrize(
    ("message", "trained"),
    [
        ({"role": "assistant", "content": "a"}, True),
        ({"role": "assistant", "content": "a", "weight": 1}, True),
        ({"role": "assistant", "content": "a", "weight": 0}, False),
        ({"role": "user", "content": "a"}, False),
        ({"role": "user", "content": "a", "weight": 1}, False),
    ],
)
def test_an_assistants_turn_with_a_weight_is_trained(message: Message, trained: bool) -> None:
    assert is_trained(message) is trained


@pytest.mark.parametrize(
    ("end", "opened"),
    [("<think>", True), ("<think>\n", True), ("<think> and", False), ("</think>", False), ("", False)],
)
def test_a_prompt_opens_thinking_if_it_ends_with_the_tag(written: Callable[[str], Any], end: str, opened: bool) -> None:
    tokenizer = written(f"{{{{ messages[0].content }}}}{end}")
    assert opens_thinking(tokenizer, prompt_ids(tokenizer, [user("one two three " * 9)])) is opened


def test_end_tokens_of_a_template_that_has_none_are_the_tokenizers(written: Callable[[str], Any]) -> None:
    tokenizer = written("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    end = tokenizer.eos_token_id
    assert end_token_ids(tokenizer) == [end]
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=[7, end, 9])) == [end, 7, 9]
    assert end_token_ids(tokenizer, GenerationConfig(eos_token_id=7)) == [end, 7]
    for wrong in ([7, None], [1.5], "x"):
        config = GenerationConfig()
        config.eos_token_id = wrong  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(UserError, match="eos_token_id in its generation_config is not a token's number"):
            end_token_ids(tokenizer, config)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"ends the assistant's turn with '\\n', which is not a special token"):
        end_token_ids(tokenizer)


def test_what_a_failing_template_says_is_said_in_short(written: Callable[[str], Any]) -> None:
    messages = [user("a"), assistant("b"), user("c")]
    for template, said in {
        "{{ raise_exception('no') }}": "no",
        "{{ raise_exception('y' * 400) }}": "y" * 300,
        "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    }.items():
        with pytest.raises(UserError) as caught:
            prompt_ids(written(template), messages)
        assert str(caught.value).endswith(f"its chat template rejects the roles [user, assistant, user]: {said}")
    nameless = written("")
    nameless.name_or_path = ""
    with pytest.raises(UserError, match=f"^{type(nameless).__name__} has no chat template"):
        prompt_ids(nameless, messages)
    listing = written(PLAIN)
    listing.apply_chat_template = lambda *rest, **settings: ["a"]
    with pytest.raises(UserError, match="its chat template makes no text"):
        prompt_ids(listing, messages)


def test_a_template_may_add_a_limited_number_of_characters(
    written: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MAX_ADDED_CHARS", 10)
    monkeypatch.setattr(chat, "MAX_REPEATED", 2)
    # "user" and "Hi" are 6 characters: 10 + 2 * 6.
    assert text_of(written("{{ 'x' * 22 }}"), [user("Hi")]) == "x" * 22
    with pytest.raises(UserError, match="its chat template makes 23 characters of 6; use the tokenizer's own"):
        prompt_ids(written("{{ 'x' * 23 }}"), [user("Hi")])


def test_where_prompt_and_conversation_part_is_said(written: Callable[[str], Any]) -> None:
    tokenizer = written(PLAIN + f"{{% if add_generation_prompt %}}{'P' * 50}{{% endif %}}")
    words = f"the prompt continues with '{'P' * 40}', the conversation with '{'Y' * 40}'"
    with pytest.raises(UserError, match=words):
        encode(tokenizer, [user("Hi")], [assistant("Y" * 50)])


END_INSIDE = PLAIN.replace("{{", "{% if m.content == 'stop' %}END{% endif %}{{")


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_end_token_inside_of_an_answer_is_refused(written: Callable[[str], Any], end: str) -> None:
    tokenizer = written(END_INSIDE.replace("END", end))
    tokenizer.eos_token = "<|endoftext|>"
    assert texts(tokenizer, encode(tokenizer, [user("Hi")], [assistant("go")])) == ["go<|im_end|>"]
    with pytest.raises(UserError, match="does not put the answer right after the prompt"):
        encode(tokenizer, [user("Hi")], [assistant("stop")])


def test_a_changed_answer_is_refused_by_what_is_changed(written: Callable[[str], Any]) -> None:
    thinking = "{{ m.reasoning_content | default('') | replace('b', 'c') }}"
    for template, said, field in (
        ("{{ m.content | replace('b', 'c') }}", assistant("abc"), "content"),
        (thinking + "{{ m.content }}", assistant("a", "abc"), "thinking"),
    ):
        tokenizer = written("{% for m in messages %}" + template + "<|im_end|>{% endfor %}")
        with pytest.raises(UserError, match=rf"changes the answer's {field} \(is a thinking tag in it\?\)"):
            encode(tokenizer, [user("Hi")], [said])
    with pytest.raises(UserError, match="the thinking has a closing thinking tag in it"):
        encode(written(PLAIN), [user("Hi")], [assistant("4", "a </think> b")])


def test_a_template_that_ends_the_last_turn_only_is_for_single_turns(written: Callable[[str], Any]) -> None:
    end = "{% if loop.last and m.role == 'assistant' %}<|im_end|>{% endif %}"
    template = PLAIN.replace("<|im_end|>", end)
    tokenizer = written(template)
    turns: list[Message] = [assistant("A"), user("b"), assistant("B")]
    assert [texts(tokenizer, each) for each in encode_turns(tokenizer, [user("a")], turns)] == [
        ["A<|im_end|>"],
        ["B<|im_end|>"],
    ]
    with pytest.raises(UserError, match=r"ends earlier turns without '<\|im_end\|>'; use single turns"):
        encode(tokenizer, [user("a")], turns)


def test_a_tag_that_is_a_special_token_opens_thinking_too(written: Callable[[str], Any]) -> None:
    tokenizer = written("{{ messages[0].content }}<think>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert "<think>" in tokenizer.all_special_tokens
    assert opens_thinking(tokenizer, prompt_ids(tokenizer, [user("Hi")]))


def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused_where_it_shows(
    written: Callable[[str], Any],
) -> None:
    """Where prompt and answer would share a token, the answer is tokenized alone, and its text must stay the same."""
    tokenizer = written(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    asked, answer = [user("two t")], [assistant("hree")]
    assert texts(tokenizer, encode(tokenizer, asked, answer)) == ["hree<|im_end|>"]
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    with pytest.raises(UserError, match="chat template"):
        encode(tokenizer, asked, answer)
