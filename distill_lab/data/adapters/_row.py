"""Shared code of the adapters: read a row's fields, build turns, split a conversation into prompt and completion.

Row (dict) -> Record. All functions raise ValueError with a reason that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_lab.chat import split_thinking
from distill_lab.types import Message, Prompt, Record

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names that data sets use for the four roles."""


def text(row: Mapping[str, Any], field: str) -> str:
    """A field that must exist and contain text."""
    value = row.get(field)
    if value is None:
        raise ValueError(f"field {field!r} is missing" if field not in row else f"field {field!r} is null")
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected text")
    return value


def optional_text(row: Mapping[str, Any], *fields: str) -> str | None:
    """The first of these fields that is not null, which must be text; None if all are null or missing."""
    for field in fields:
        if row.get(field) is not None:
            return text(row, field)
    return None


def filled(row: Mapping[str, Any], *fields: str) -> str | None:
    """The name of the first of these fields that is not missing, null or empty text."""
    return next((field for field in fields if row.get(field) not in (None, "")), None)


def first(item: Mapping[str, Any], *fields: str) -> Any:
    """The value of the first of these fields that is not missing or null; otherwise None."""
    return next((item[field] for field in fields if item.get(field) is not None), None)


def gold_answer(row: Mapping[str, Any], *fields: str) -> str | None:
    """The first of these fields that is not empty, as text: 43.0 and 43 become "43". None if all are empty."""
    field = filled(row, *fields)
    if field is None:
        return None
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected text or a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def assistant(content: str, thinking: str | None = None) -> Message:
    """An assistant message; thinking in tags at the start of the content is split off."""
    if not thinking:
        thinking, content = split_thinking(content)
    message = {"role": "assistant", "content": content}
    return message | {"thinking": thinking} if thinking else message


def turn(role: Any, content: Any, *, thinking: str | None = None, tool_calls: Any = None) -> Message:
    """One message, with any known role name, content as text or typed parts, and tool calls as text.

    Tool calls become `<tool_call>` blocks, as in Qwen's chat template.
    """
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"unknown role {role!r}; known roles are {', '.join(ROLES)}")
    if isinstance(content, list):
        content, thinking = _join_parts(content, thinking)
    calls = [_tool_call(first(call, "function") or call) for call in _dicts(tool_calls or [], "tool_calls")]
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"the {role} turn's content is {type(content).__name__}, expected text")
    if role == "function_call":
        content = _tool_call(content)
    if ROLES[role] != "assistant":
        return {"role": ROLES[role], "content": content}
    message = assistant(content, thinking)
    if calls:
        message["content"] = "\n".join(part for part in (message["content"], *calls) if part)
    return message


def split(messages: Sequence[Message]) -> tuple[list[Message], list[Message] | None]:
    """Split a conversation before its first answer: (prompt, completion).

    A conversation that ends with a user or tool turn is entirely prompt, because that turn has no answer yet.
    """
    if not messages:
        raise ValueError("the conversation has no turns")
    if messages[-1]["role"] != "assistant":
        return list(messages), None
    cut = next(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[:cut]), list(messages[cut:])


def record(
    row: Mapping[str, Any],
    id: str,
    *,
    used: Iterable[str | None],
    prompt: list[Message],
    completion: list[Message] | None = None,
    answer: str | None = None,
) -> Record:
    """Build the Record; fields not in `used` go into its meta. Raises ValueError for prompts without a question."""
    if not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise ValueError("the prompt is empty: no user turn with text before the first answer")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the prompt ends with a {prompt[-1]['role']} turn, so there is nothing to answer")
    read = set(used)
    rest = {field: value for field, value in row.items() if field not in read and value is not None}
    return Record(Prompt(id, prompt, answer, rest), completion)


def instruction(row: Mapping[str, Any], id: str, *, fields: tuple[str, ...]) -> Record:
    """The record of an instruction row: optional system and history, instruction and, if in `fields`, input."""
    system = optional_text(row, "system")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for pair in row.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)):
            raise ValueError("field 'history' must contain [question, answer] pairs")
        messages += [{"role": "user", "content": pair[0]}, assistant(pair[1])]
    parts = [text(row, "instruction")]
    if "input" in fields:
        parts.append(optional_text(row, "input") or "")
    messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part.strip())})
    output = optional_text(row, "output", "response")
    completion = None if output is None else [assistant(output)]
    answer = gold_answer(row, "answer")
    used = set(fields) - ({"response"} if row.get("output") is not None else set())
    return record(row, id, used=used, prompt=messages, completion=completion, answer=answer)


def turns(items: Any, field: str) -> list[dict[str, Any]]:
    """A field that must be a list of objects, one per turn of a conversation."""
    if not isinstance(items, list):
        raise ValueError(f"field {field!r} is {type(items).__name__}, expected a list of turns")
    return _dicts(items, field)


def _dicts(items: Any, field: str) -> list[dict[str, Any]]:
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{field}[{number}] is {type(item).__name__}, expected an object")
    return items


def _join_parts(parts: list[Any], thinking: str | None) -> tuple[str, str | None]:
    """Typed content parts -> (content, thinking). Each part is {"type": ..., "text" or "value": ...}."""
    content: list[str] = []
    for part in _dicts(parts, "content"):
        kind, value = part.get("type", "text"), first(part, "text", "value", "thinking")
        if kind == "tool_call":
            content.append(_tool_call(value))
        elif not isinstance(value, str):
            raise ValueError(f"a content part of type {kind!r} contains no text")
        elif kind in ("reasoning", "thinking"):
            thinking = value if thinking is None else f"{thinking}\n{value}"
        elif kind == "text":
            content.append(value)
        else:
            raise ValueError(f"a content part has type {kind!r}; only text, reasoning and tool_call are supported")
    return "\n".join(content), thinking


def _tool_call(call: Any) -> str:
    if isinstance(call, dict):
        if isinstance(call.get("arguments"), str):
            try:
                call = call | {"arguments": json.loads(call["arguments"])}
            except ValueError:
                raise ValueError("a tool call's arguments are not JSON") from None
        call = json.dumps(call, ensure_ascii=False)
    if not isinstance(call, str):
        raise ValueError(f"a tool call is {type(call).__name__}, expected an object or JSON text")
    return f"<tool_call>\n{call}\n</tool_call>"
