"""Read a chat completion that a server sent: JSON -> Completion, whatever dialect the server speaks.

    data = read_json(body)                                    also with deep nesting in fields that nobody reads
    completion = to_completion(data, prompt.id, 0, max_tokens=512, on_note=print)

Servers differ in three ways. Their finish reasons have many names (`finish_kind`). Their content is text or a list of parts,
with the thinking in a part, in a field, or in think tags. Their tool calls are fields, which become the text that a local
Qwen model writes for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Literal

from distill_lab import chat
from distill_lab.generation.engines._chat_completions import RequestRejected, one_line
from distill_lab.types import Completion, Fields, Usage

MAX_DEPTH = 50
"""Values nested deeper than this are read as null where the JSON is too deep for Python's reader; answers need about 10."""
DEEP_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)

FinishKind = Literal["stop", "length", "filter", "failed", "unknown"]
FINISH_WORDS: tuple[tuple[FinishKind, frozenset[str]], ...] = (
    ("filter", frozenset("filter filtered safety recitation blocklist prohibited spii sensitive toxic guardrail "
                         "guardrails moderation refusal refused blocked".split())),
    ("failed", frozenset("error abort aborted cancel canceled timeout insufficient network failed failure "
                         "malformed overloaded unexpected interrupted disconnected rate paused pause".split())),
    ("length", frozenset("length max maximum limit truncated exceeded budget cutoff".split())),
    ("stop", frozenset("stop stopped eos eot end ended complete completed finish finished done normal success tool "
                       "tools function call calls".split())),
)  # fmt: skip
"""Finish reasons by the words in them, the first match counts: `MAX_TOKENS`, `model_length`, `eos_token`, `end_turn`."""
TEXT_PARTS = frozenset({"text", "output_text"})
THINKING_PARTS = frozenset(
    {"thinking", "reasoning", "reasoning_text", "summary_text", "reasoning.text", "reasoning.summary"}
)
HIDDEN_PARTS = frozenset({"redacted_thinking", "reasoning.encrypted"})
"""Parts of thinking that the server encrypted; there is nothing to read in them."""
THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking", "thinking_blocks", "reasoning_details")


def read_json(text: bytes) -> object:
    """The JSON value. What is nested too deep for Python's reader becomes null. Raises ValueError for other text."""
    try:
        return json.loads(text)
    except RecursionError:
        return json.loads(_shallow(text))


def _shallow(text: bytes) -> bytes:
    """`text` with each value that starts more than MAX_DEPTH levels deep replaced by null."""
    kept, depth, copied = [], 0, 0
    for token in DEEP_TOKENS.finditer(text):
        if token[0] in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept.append(text[copied : token.start()])
        elif token[0] in b"]}":
            if depth == MAX_DEPTH + 1:
                kept.append(b"null")
                copied = token.end()
            depth -= 1
    if depth:
        raise ValueError("unbalanced brackets")
    return b"".join([*kept, text[copied:]])


def finish_kind(reason: object) -> FinishKind:
    """What a server's finish reason means, by the words in it; an empty one, and one that is not text, is unknown."""
    if not isinstance(reason, str):
        return "unknown"
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", reason).lower().replace("ell", "el"))) - {
        "reason"
    }
    if "finish" in words and len(words) > 1:  # FINISH_REASON_SAFETY
        words.discard("finish")
    for kind, known in FINISH_WORDS:
        if words & known:
            return kind
    return "unknown"


def to_completion(
    data: Fields,
    prompt_id: str,
    sample: int,
    *,
    max_tokens: int = 0,
    on_note: Callable[[str], None] = lambda note: None,
) -> Completion:
    """The completion in a response.

    num_tokens is what the server reports, or 0. An answer that a content filter cut off, and a refusal, become an error
    completion. A finish reason that says nothing counts as "stop", or as "length" if the answer has `max_tokens` tokens;
    on_note receives a sentence about it. Raises RequestRejected if the response contains no answer.
    """
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RequestRejected("the server's response has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise RequestRejected("the choice in the server's response has no message")
    usage = read_usage(data.get("usage"))
    num_tokens = _count(data.get("usage"), "completion_tokens", "output_tokens")

    def failed(error: str) -> Completion:
        return Completion(prompt_id, sample, "", None, "error", num_tokens, error, usage)

    reason = choice.get("finish_reason")
    kind = finish_kind(reason)
    if kind == "filter" and "refus" not in str(reason).lower():
        return failed("the server's content filter cut off the answer")
    if kind == "failed":
        raise RequestRejected(f"the answer is incomplete: its finish_reason is {one_line(repr(reason))}")
    try:
        thinking, content = _texts(message, reason)
        calls = list(_tool_calls(message))
    except RecursionError:
        raise RequestRejected("the answer is nested too deep") from None
    refusal = message.get("refusal")
    if kind == "filter" or (isinstance(refusal, str) and refusal.strip() and not (content or "").strip()):
        return failed(f"the model refused to answer: {one_line(refusal or content or 'no reason given')}")
    if calls:
        content = "\n".join([content, *calls] if content else calls)
    if content is None:
        # A server that separates thinking from the answer returns no content if the answer never started.
        if thinking is None and kind != "length":
            raise RequestRejected(f"the answer's content is null instead of text (finish_reason {reason!r})")
        content = ""
    if kind == "unknown":
        full = 0 < max_tokens <= num_tokens
        kind = "length" if full else "stop"
        if not (content or thinking):
            raise RequestRejected(f"the answer is empty, and its finish_reason is {one_line(repr(reason))}")
        on_note(
            f"the server's finish_reason {one_line(repr(reason))} says nothing that the lab knows; such answers count as "
            "finished, or as cut off if they have the maximum of tokens"
        )
    thinking, content = _separate(thinking, content)
    return Completion(prompt_id, sample, content, thinking, kind, num_tokens, None, usage)


def _texts(message: Fields, reason: object) -> tuple[str | None, str | None]:
    """Thinking and content of a message, None if there is nothing. Rejects parts it cannot hold."""
    thoughts, texts = _parts(message.get("content"), reason)
    for field in THINKING_FIELDS:
        if thoughts:
            break
        value = message.get(field)
        found = [value] if isinstance(value, str) else _parts(value, reason, thinking=True)[0] if value else []
        thoughts = [text for text in found if text.strip()]
    if message.get("audio"):
        raise RequestRejected("the answer is audio instead of text")
    return "\n\n".join(thoughts) or None, None if texts is None else "".join(texts)


def _parts(value: object, reason: object, *, thinking: bool = False) -> tuple[list[str], list[str] | None]:
    """Thinking and text of a message's content: text, one part, or a list of parts (nested ones of thinking too)."""
    if value is None:
        return [], None
    if isinstance(value, str):
        return ([value], None) if thinking else ([], [value])
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        found = f"a JSON {type(value).__name__}"
        raise RequestRejected(f"the answer's content is {found} instead of text (finish_reason {reason!r})")
    thoughts: list[str] = []
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            (thoughts if thinking else texts).append(part)
            continue
        kind = str(part.get("type", "text")) if isinstance(part, dict) else f"a JSON {type(part).__name__}"
        if kind in HIDDEN_PARTS:
            continue
        if kind in THINKING_PARTS or (thinking and kind in TEXT_PARTS):
            thoughts += _thoughts(part, reason)
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        else:
            raise RequestRejected(f"the answer has a part that is not text: {one_line(repr(kind))}")
    return [text for text in thoughts if text.strip()], texts


def _thoughts(part: Fields, reason: object) -> list[str]:
    """The texts of a part that is thinking, which holds text or a list of parts under one of several names."""
    for name in ("thinking", "text", "reasoning", "summary", "content"):
        value = part.get(name)
        if isinstance(value, str):
            return [value]
        if value:
            return ["".join(_parts(value, reason, thinking=True)[0])]
    return []


def _separate(thinking: str | None, content: str) -> tuple[str | None, str]:
    """Thinking and content in the form of `chat.split_thinking`, also if the content repeats or continues the thinking."""
    if thinking is None:
        return chat.split_thinking(content)
    thinking = thinking.strip("\n")
    if content.lstrip().startswith(tuple(opening for opening, _ in chat.THINKING_TAGS)):
        inner, content = chat.split_thinking(content)
        if inner and inner.strip() not in thinking:
            thinking = f"{thinking}\n\n{inner}"
    return thinking, content.lstrip("\n")


def _calls(message: Fields) -> list[object]:
    calls = message.get("tool_calls")
    legacy = message.get("function_call")
    return calls if isinstance(calls, list) else [{"function": legacy}] if isinstance(legacy, dict) else []


def _tool_calls(message: Fields) -> Iterable[str]:
    """Each tool call as the text that Qwen's chat templates write for it. Empty arguments mean {}."""
    for call in _calls(message):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise RequestRejected("the answer calls a tool that is not a function with a name")
        given = function.get("arguments")
        try:
            arguments = read_json(given.strip().encode() or b"{}") if isinstance(given, str) else given
        except ValueError:
            raise RequestRejected(f"the arguments of a call of the tool {one_line(name)} are not JSON") from None
        body = {"name": name, "arguments": {} if arguments is None else arguments}
        yield f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"


def read_usage(usage: object) -> Usage | None:
    """The tokens that the server counted for a request; None if it does not report those of the prompt."""
    read = _count(usage, "prompt_tokens", "input_tokens")
    if not read or not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(details, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens")
    return Usage(read, _count(usage, "completion_tokens", "output_tokens"), min(cached, read))


def _count(values: object, *names: str) -> int:
    """The first of these fields that holds a positive whole number; 0 if there is none."""
    found = [values.get(name) for name in names] if isinstance(values, dict) else []
    return next((number for number in found if type(number) is int and number > 0), 0)
