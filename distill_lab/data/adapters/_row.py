"""Shared code of the adapters: read a row's fields, build turns, split a conversation into prompt and completion.

Row (dict) -> Record. All functions raise ValueError with a reason that names the field. `record` is the one way to build a
Record: it adds what any row may have (system prompt, tools, context, choices) and refuses a field that means something and
that nothing used (`_meaning`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill_lab.control_tokens import HARMONY_STARTS, Closing, bare_closing, split_thinking
from distill_lab.data.adapters import _choices, _meaning, _tools
from distill_lab.types import Fields, JsonObject, Message, Prompt, Record

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
"""Names that data sets use for the four roles, in any case."""
CALLS = ("function_call", "tool_call")
PLACEHOLDERS = ("<noinput>", "<no input>", "<nooutput>", "<no output>")
"""Texts that mean that there is no text."""
GOLD = ("answer", "gold_answer", "true_answer", "gtruth_answer", "final_answer", "correct_answer", "expected_answer",
        "ground_truth", "gold", "target", "label", "answers")  # fmt: skip
"""Fields with a gold answer, the first that is filled counts."""
WEIGHTS = ("weight", "train", "loss", "trainable")
"""Fields of a turn that say whether it is trained."""
THINKING = ("thinking", "reasoning_content", "reasoning", "reasoning_trace", "complex_cot")
SWITCHES = ("on", "off", "true", "false", "none", "low", "medium", "high")
"""What such a field holds if it only says whether or how long to think."""


def text(row: Fields, field: str) -> str:
    """A field that must exist and contain text."""
    value = row.get(field)
    if value is None:
        raise ValueError(f"field {field!r} is missing" if field not in row else f"field {field!r} is null")
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected text")
    return "" if value.strip().lower() in PLACEHOLDERS else value


def optional_text(row: Fields, *fields: str) -> str | None:
    """The first of these fields that is not null, which must be text; None if all are null or missing."""
    for field in fields:
        if row.get(field) is not None:
            return text(row, field)
    return None


def is_filled(value: object) -> bool:
    """Whether a value is something: not null, empty, blank or a placeholder such as `<noinput>`."""
    if isinstance(value, str):
        return bool(value.strip()) and value.strip().lower() not in PLACEHOLDERS
    return value not in (None, [], {})


def filled(row: Fields, *fields: str) -> str | None:
    """The name of the first of these fields that is filled."""
    return next((field for field in fields if is_filled(row.get(field))), None)


def first(item: Fields, *fields: str) -> object:
    """The value of the first of these fields that is not missing or null; otherwise None."""
    return next((item[field] for field in fields if item.get(field) is not None), None)


def thinking_of(row: Fields, *more: str) -> tuple[str | None, list[str]]:
    """The thinking in a row's or turn's own field, and the fields read; a switch (`"reasoning": "on"`) is not thinking."""
    for field in (*THINKING, *more):
        value = row.get(field)
        if is_filled(value) and not (isinstance(value, str) and value.strip().lower() in SWITCHES):
            return text(row, field), [field]
    return None, []


def gold_answer(row: Fields, *fields: str) -> str | None:
    """The first of these fields that is filled, as text: 43.0 and 43 become "43", true "True". None if all are empty.

    Of several accepted answers (SQuAD's `{"text": [...]}`, a list `answers`), the first.
    """
    field = filled(row, *fields)
    return None if field is None else _gold_text(row[field], field, several=field == "answers")


def _gold_text(value: object, field: str, *, several: bool) -> str | None:
    if isinstance(value, dict):
        inside = filled(value, "text", "value", "answer")
        if inside is None:
            if value.get("text") == []:
                return None  # SQuAD 2: the passage does not answer the question
            raise ValueError(f"field {field!r} is an object without text, value or answer")
        return _gold_text(value[inside], field, several=True)
    if isinstance(value, list) and (len(value) == 1 or (several and value)):
        return _gold_text(value[0], field, several=False)
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected text or a number")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def assistant(content: str, thinking: str | None = None) -> Message:
    """An assistant message; thinking in tags at the start of the content is split off.

    Raises ValueError if a closing tag without an opening one may or may not end the thinking.
    """
    if not thinking:
        closing = bare_closing(content)
        if closing is Closing.UNCLEAR:
            raise ValueError(
                "the answer has a closing thinking tag on a line by itself and no opening one; add the opening tag if the "
                "text before it is thinking, or put the tag in backticks if it is not"
            )
        thinking, content = split_thinking(content)
        if content.lstrip().startswith(HARMONY_STARTS):
            raise ValueError(f"the answer starts with {content.strip()[:40]!r}, but its channels cannot be read")
    message = {"role": "assistant", "content": content}
    return message | {"thinking": thinking} if thinking else message


def turn(item: Fields, *, role: object, content: object) -> Message:
    """One message, with any known role name, content as text or typed parts, and tool calls as text.

    Reads thinking, tool calls and the training weight from the item. Tool calls become `<tool_call>` blocks, as in Qwen's
    chat template. An assistant's turn that is not to be trained gets `"weight": 0`.
    """
    name = role.strip().lower() if isinstance(role, str) else role
    if not isinstance(name, str) or name not in ROLES:
        raise ValueError(f"unknown role {role!r}; known roles are {', '.join(ROLES)}")
    thinking, _ = thinking_of(item)
    if isinstance(content, list):
        content, thinking = _join_parts(content, thinking)
    calls = [
        _tools.call_text(first(call, "function") or call) for call in _dicts(item.get("tool_calls") or [], "tool_calls")
    ]
    if item.get("function_call"):
        calls.append(_tools.call_text(item["function_call"]))
    if content is None and (calls or thinking):
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"the {role} turn's content is {type(content).__name__}, expected text")
    if name in CALLS:
        content = _tools.call_text(content)
    if ROLES[name] != "assistant":
        return {"role": ROLES[name], "content": content}
    message = assistant(content, thinking)
    if calls:
        message["content"] = "\n".join(part for part in (message["content"], *calls) if part)
    return message if _is_trained(item) else message | {"weight": 0}


def _is_trained(item: Fields) -> bool:
    """Whether a turn is trained. Raises ValueError for a weight between 0 and 1, and for parts of a turn."""
    if item.get("train_detail") or item.get("training_detail"):
        raise ValueError("a turn has train_detail, which trains parts of a turn; the lab trains whole turns")
    for field in WEIGHTS:
        value = item.get(field)
        value = {"true": True, "false": False, "0": 0, "1": 1}.get(value.strip().lower(), value) if isinstance(
            value, str
        ) else value  # fmt: skip
        if value in (None, 1):
            continue
        if value != 0:
            raise ValueError(f"a turn's {field!r} is {value!r}; the lab trains a turn (1) or does not (0)")
        return False
    return True


def split(messages: Sequence[Message]) -> tuple[list[Message], list[Message] | None]:
    """Split a conversation before its first trained answer to a user: (prompt, completion).

    A conversation that ends with a user or tool turn is entirely prompt, because that turn has no answer yet. An
    assistant's turn before the first user turn, such as a greeting, is part of the prompt, and so are turns with weight 0
    before the first trained one; those after the last trained one are left out.
    """
    if not messages:
        raise ValueError("the conversation has no turns")
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    trained = [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and "weight" not in message and users and number > users[0]
    ]
    weighted = any("weight" in message for message in messages)
    if messages[-1]["role"] != "assistant" and not weighted:
        return list(messages), None
    if not trained:
        if weighted:
            raise ValueError("no turn of the conversation is trained: all of the assistant's have weight 0")
        return list(messages), None
    return [_untrained(message) for message in messages[: trained[0]]], list(messages[trained[0] : trained[-1] + 1])


def _untrained(message: Message) -> Message:
    """A message of a prompt, which is never trained anyway."""
    return {key: value for key, value in message.items() if key != "weight"}


def record(
    row: Fields,
    id: str,
    *,
    used: Iterable[str | None],
    prompt: list[Message],
    completion: list[Message] | None = None,
    answer: str | None = None,
    conversation: bool = False,
    meta: Fields | None = None,
) -> Record:
    """Build the Record; fields not in `used` go into its meta.

    Adds the row's system prompt and tools to the prompt and, unless it is a conversation, its context and choices to the
    question. Raises ValueError for prompts without a question and for fields that mean something and were not used.
    meta: further fields, which mean nothing.
    """
    read = {field for field in used if field is not None}
    prompt = list(prompt)
    if not conversation and sum(message["role"] == "user" for message in prompt) == 1:
        prompt, answer = _asked(row, prompt, answer, read)
    if completion is None and answer is None:
        names = (*GOLD, "correct", "correct_option", "answerKey", "answer_key")
        gold = filled(row, *(field for field in names if field not in read))
        if gold is not None and not isinstance(row[gold], bool):
            answer = gold_answer(row, gold)
            read.add(gold)
    prompt = _with_system(row, prompt, read)
    if not any(message["role"] == "user" and message["content"].strip() for message in prompt):
        raise ValueError("the prompt is empty: no user turn with text before the first answer")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"the prompt ends with a {prompt[-1]['role']} turn, so there is nothing to answer")
    shown = [str(message[key]) for message in (*prompt, *(completion or [])) for key in ("content", "thinking") if
             key in message]  # fmt: skip
    _meaning.check(row, read, shown, answered=completion is not None or answer is not None)
    for field in ("weight", "train"):
        if completion is not None and row.get(field) == 0 and row[field] is not None and field not in read:
            raise ValueError(f"the row's {field!r} is {row[field]!r}, so it is not to be trained; remove the row")
    rest = dict(meta or {}) | {name: value for name, value in row.items() if name not in read and value is not None}
    if completion is not None and row.get("label") is False and "label" not in read:
        # Preference data without pairs (KTO): a completion that people did not want is no example.
        rest["rejected"], completion = completion, None
    return Record(Prompt(id, prompt, answer, rest), completion)


def _asked(row: Fields, prompt: list[Message], answer: str | None, read: set[str]) -> tuple[list[Message], str | None]:
    """The prompt with the row's context and choices in the question, and the answer as a choice; adds to `read`."""
    place = next(number for number, message in enumerate(prompt) if message["role"] == "user")
    question = prompt[place]["content"]
    parts = [question]
    for field in _meaning.CONTEXT:
        if field not in read and is_filled(row.get(field)):
            given = _context(row[field], field)
            read.add(field)
            if given not in question:
                parts.insert(-1, given)
    choices = _choices.find_choices(row)
    if choices is not None and not read & set(choices.fields):
        read.update(choices.fields)
        label, fields = _choices.gold_label(row, choices)
        read.update(fields)
        answer = label if label is not None else answer
        if not all(text in question for text in choices.texts):
            parts.append(choices.text())
    for field in _choices.LISTS:
        value = row.get(field)
        if field not in read and isinstance(value, str) and is_filled(value):
            read.add(field)
            parts += [] if value.strip() in question else [value.strip()]
    content = "\n\n".join(part for part in parts if part.strip())
    return [
        *prompt[:place],
        {"role": "user", "content": content if len(parts) > 1 else question},
        *prompt[place + 1 :],
    ], answer


def _context(value: object, field: str) -> str:
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise ValueError(f"field {field!r} is {type(value).__name__}, expected a text or a list of texts")
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _with_system(row: Fields, prompt: list[Message], read: set[str]) -> list[Message]:
    """The prompt with the row's system prompt and tools in its system message; adds to `read`."""
    has_system = prompt[:1] and prompt[0]["role"] == "system"
    system = prompt[0]["content"] if has_system else ""
    field = filled(row, *(name for name in _meaning.SYSTEM if name not in read))
    if field is not None and not system:
        system = text(row, field)
        read.add(field)
    described, names, tools_field = _tools.described(row) if not read & set(_tools.FIELDS) else ("", [], None)
    if tools_field is not None:
        read.add(tools_field)
        if not all(name in system for name in names):
            system = f"{system}\n\n{described}" if system.strip() else described
    if not system or (has_system and system == prompt[0]["content"]):
        return prompt
    return [{"role": "system", "content": system}, *(prompt[1:] if has_system else prompt)]


def instruction(row: Fields, id: str, *, fields: tuple[str, ...]) -> Record:
    """The record of an instruction row: optional history, instruction and, if in `fields`, input."""
    messages: list[Message] = []
    history = row.get("history") or []
    for pair in history if isinstance(history, list) else [history]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)):
            raise ValueError("field 'history' must contain [question, answer] pairs")
        messages += [{"role": "user", "content": pair[0]}, assistant(pair[1])]
    parts = [text(row, "instruction")]
    if "input" in fields:
        parts.append(optional_text(row, "input") or "")
    messages.append({"role": "user", "content": "\n\n".join(part for part in parts if part.strip())})
    names = ("output", "response", "cot")
    output = filled(row, *names) or next((name for name in names if name in row), None)
    found = optional_text(row, output) if output else None
    thinking, read = thinking_of(row) if found is not None else (None, [])
    completion = None if found is None else [assistant(found, thinking)]
    used = {"instruction", "history", output, "answer", *read, *("input" for name in fields if name == "input")}
    answer = gold_answer(row, "answer")
    return record(row, id, used=used, prompt=messages, completion=completion, answer=answer)


def turns(items: object, field: str) -> list[JsonObject]:
    """A field that must be a list of objects, one per turn of a conversation."""
    if not isinstance(items, list):
        raise ValueError(f"field {field!r} is {type(items).__name__}, expected a list of turns")
    return _dicts(items, field)


def _dicts(items: object, field: str) -> list[JsonObject]:
    if not isinstance(items, list):
        raise ValueError(f"field {field!r} is {type(items).__name__}, expected a list")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{field}[{number}] is {type(item).__name__}, expected an object")
    return items


def _join_parts(parts: list[object], thinking: str | None) -> tuple[str, str | None]:
    """Typed content parts -> (content, thinking). Each part is {"type": ..., "text" or "value": ...}."""
    content: list[str] = []
    for part in _dicts(parts, "content"):
        kind, value = part.get("type", "text"), first(part, "text", "value", "thinking")
        if kind == "tool_call":
            content.append(_tools.call_text(value))
        elif not isinstance(value, str):
            raise ValueError(f"a content part of type {kind!r} contains no text")
        elif kind in ("reasoning", "thinking"):
            thinking = value if thinking is None else f"{thinking}\n{value}"
        elif kind == "text":
            content.append(value)
        else:
            raise ValueError(f"a content part has type {kind!r}; only text, reasoning and tool_call are supported")
    return "\n".join(content), thinking
