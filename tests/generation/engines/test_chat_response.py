"""Answers of servers in all their dialects become one kind of completion, and nothing in them is lost in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distill_lab.generation.engines._chat_completions import RequestRejected
from distill_lab.generation.engines._chat_response import MAX_DEPTH, finish_kind, read_json, read_usage, to_completion
from distill_lab.types import Completion, Usage
from tests.hostile_server import answer


def read(body: dict[str, Any], **settings: Any) -> tuple[str | None, str, str]:
    row = to_completion(body, "p", 0, **settings)
    return row.thinking, row.content, row.finish_reason


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("stop", "stop eos eos_token EOS STOP end_turn stop_sequence END_TURN complete COMPLETE FINISH_REASON_STOP endTurn "
                 "completed finished normal tool_calls tool_use function_call TOOL_CALL stop_token eot_id end_of_turn"),
        ("length", "length max_tokens MAX_TOKENS model_length FINISH_REASON_MAX_TOKENS max_length max_output_tokens "
                   "token_limit maxTokens LENGTH model_context_window_exceeded max_new_tokens length_capped"),
        ("filter", "content_filter SAFETY RECITATION PROHIBITED_CONTENT BLOCKLIST SPII refusal guardrail_intervened "
                   "content_filtered sensitive"),
        ("failed", "error abort cancelled insufficient_system_resource network_error MALFORMED_FUNCTION_CALL timeout"),
        ("unknown", "banana OTHER 7 null"),
    ],
)  # fmt: skip
def test_finish_reasons_are_known_by_their_words(kind: str, reasons: str) -> None:
    assert {reason: finish_kind(reason) for reason in reasons.split()} == dict.fromkeys(reasons.split(), kind)


@pytest.mark.parametrize("reason", [None, "", "banana", 7, {"type": "stop"}, [], True, "  "])
def test_an_unknown_finish_reason_counts_as_finished_unless_the_answer_is_as_long_as_it_may_be(reason: Any) -> None:
    notes: list[str] = []
    assert read(answer("whole", finish_reason=reason), on_note=notes.append) == (None, "whole", "stop")
    assert len(notes) == 1
    assert " ".join(repr(reason).split()) in notes[0]
    assert read(answer("cut", finish_reason=reason, tokens=7), max_tokens=7) == (None, "cut", "length")
    with pytest.raises(RequestRejected, match="the answer is empty"):
        read(answer("", finish_reason=reason))


def test_a_known_finish_reason_is_taken_at_its_word() -> None:
    assert read(answer("whole", finish_reason="eos_token", tokens=7), max_tokens=7) == (None, "whole", "stop")
    assert read(answer(None, finish_reason="max_tokens")) == (None, "", "length")
    with pytest.raises(RequestRejected, match="incomplete: its finish_reason is 'abort'"):
        read(answer("half", finish_reason="abort"))


THOUGHTS = [
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+"}, {"type": "text", "text": "3"}]},
                 {"type": "text", "text": "5"}]},
    {"content": [{"type": "thinking", "thinking": "2+3", "signature": "x"}, {"type": "text", "text": "5"}]},
    {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "2+3"}]},
                 {"type": "output_text", "text": "5", "annotations": []}]},
    {"content": [{"type": "reasoning", "text": "2+3"}, {"type": "redacted_thinking", "data": "??"}, "5"]},
    {"content": {"type": "text", "text": "5"}, "reasoning": "2+3"},
    {"content": "5", "thinking": "2+3"},
    {"content": "5", "reasoning_content": [{"type": "text", "text": "2+3"}]},
    {"content": "5", "thinking_blocks": [{"type": "thinking", "thinking": "2+3"}]},
    {"content": "5", "reasoning": None, "reasoning_details": [{"type": "reasoning.text", "text": "2+3"}]},
    {"content": "<think>\n2+3\n</think>\n\n5", "reasoning_content": "2+3"},
    {"content": "<think>2+3</think>5", "reasoning_content": ""},
]  # fmt: skip


@pytest.mark.parametrize("message", THOUGHTS)
def test_thinking_is_found_in_parts_and_fields(message: dict[str, Any]) -> None:
    assert read(answer(**message)) == ("2+3", "5", "stop")


def test_text_in_several_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "12"}, {"text": "3"}, {"type": "output_text", "text": "\n4"}]
    assert read(answer(parts)) == (None, "123\n4", "stop")
    assert read(answer([])) == (None, "", "stop")
    assert read(answer("5", reasoning_content="I write </think> here")) == ("I write </think> here", "5", "stop")
    assert read(answer("the tag </think> ends it", reasoning="x")) == ("x", "the tag </think> ends it", "stop")
    assert read(answer("<think>more</think>5", reasoning="first")) == ("first\n\nmore", "5", "stop")


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {}}, {"type": "text"}, 7, None, {"type": ["text"]}]
)
def test_a_part_that_a_completion_cannot_hold_is_refused_by_name(part: Any) -> None:
    with pytest.raises(RequestRejected, match="the answer has a part that is not text"):
        read(answer([{"type": "text", "text": "see:"}, part]))
    with pytest.raises(RequestRejected, match="audio"):
        read(answer("listen", audio={"data": "..."}))


def test_a_refusal_is_an_error_that_quotes_it() -> None:
    for body in (
        answer(None, refusal="I cannot help with that."),
        answer("", refusal="I cannot help with that."),
        answer("I cannot help with that.", finish_reason="refusal"),
    ):
        row = to_completion(body, "p", 0)
        assert (row.finish_reason, row.content) == ("error", "")
        assert row.error == "the model refused to answer: I cannot help with that."
    assert read(answer("5", refusal=None)) == (None, "5", "stop")
    assert (
        to_completion(answer("a", finish_reason="SAFETY"), "p", 0).error
        == "the server's content filter cut off the answer"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "{}"),
        ("  ", "{}"),
        (None, "{}"),
        ({}, "{}"),
        ("{}", "{}"),
        ('{"x": "é"}', '{"x": "é"}'),
        ({"x": 1}, '{"x": 1}'),
    ],
)
def test_a_tool_call_is_written_as_qwen_writes_it(arguments: Any, text: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    written = f'<tool_call>\n{{"name": "look", "arguments": {text}}}\n</tool_call>'
    assert read(answer(None, finish_reason="tool_calls", tool_calls=[call])) == (None, written, "stop")
    assert read(answer("I look.", tool_calls=[call, call])) == (None, f"I look.\n{written}\n{written}", "stop")
    assert read(answer(None, function_call=call["function"])) == (None, written, "stop")


@pytest.mark.parametrize(
    "call", [{"function": {"name": "look", "arguments": "{x"}}, {"type": "custom"}, "look", {"function": 1}]
)
def test_a_tool_call_that_cannot_be_read_is_an_error(call: Any) -> None:
    with pytest.raises(RequestRejected, match="tool"):
        read(answer("I look.", tool_calls=[call]))


@pytest.mark.parametrize("depth", [60, 900, 5_000, 200_000])
def test_deep_nesting_in_a_field_that_nobody_reads_is_no_fault(depth: int) -> None:
    deep = b'{"k]\\"": ' + b"[" * depth + b'"]"' + b"]" * depth + b"}"
    body = json.dumps({**answer("5"), "debug": "HERE", "more": {"a": ["\\", '"', "{"]}}).encode()
    data = read_json(body.replace(b'"HERE"', deep))
    assert isinstance(data, dict)
    assert to_completion(data, "p", 0).content == "5"
    assert data["more"] == {"a": ["\\", '"', "{"]}


NOT_JSON = [b"[" * 100_000, b"]" * 9, b"[" * 5_000 + b"]" * 4_999, b"{", b""]


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: text[:3].decode())
def test_text_that_is_not_json_is_not_read(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any text
        read_json(text)


def test_an_answer_that_is_nested_too_deep_is_an_error() -> None:
    thought: Any = "x"
    for _ in range(700):
        thought = [{"type": "thinking", "thinking": thought}]
    with pytest.raises(RequestRejected, match="nested too deep"):
        read(answer(thought))


def test_values_as_deep_as_answers_are_read_whole() -> None:
    value: Any = "x"
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    text = b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b', "kept": ' + json.dumps(value).encode() + b"}"
    data = read_json(text)
    assert isinstance(data, dict)
    assert data["kept"] == value


def test_usage_is_read_as_servers_write_it() -> None:
    full = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    assert read_usage(full) == Usage(10, 5, cached_tokens=4)
    assert read_usage({"input_tokens": 10, "output_tokens": 5}) == Usage(10, 5)
    assert read_usage({"prompt_tokens": 10, "completion_tokens": 0, "prompt_cache_hit_tokens": 99}) == Usage(10, 0, 10)
    for nothing in (None, {}, {"completion_tokens": 5}, {"prompt_tokens": "10"}, {"prompt_tokens": True}, 7):
        assert read_usage(nothing) is None
    row = to_completion({**answer("5"), "usage": full}, "p", 0)
    assert (row.num_tokens, row.usage) == (5, Usage(10, 5, cached_tokens=4))
    assert Completion.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert "usage" not in to_completion(answer("5"), "p", 0).to_json()
