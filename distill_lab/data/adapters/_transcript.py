"""Conversations in one text -> turns: `### Human: ... ### Assistant: ...`, `Human: ...`, ChatML, `Q: ... A: ...`."""

from __future__ import annotations

import re

from distill_lab.data.adapters import _row
from distill_lab.types import Message

_TURNS = re.compile(
    r"(?:\A|\n|(?<=\S))[ ]*###[ ]*(?P<role>System|Human|User|Assistant)[ ]*(?::[ \t]*|[ \t]*(?=\n))", re.IGNORECASE
)
_TASK = re.compile(
    r"(?:\A|\n)[ ]*###[ ]*(?P<role>Instruction|Input|Context|Response|Answer|Output)[ ]*(?::[ \t]*|[ \t]*(?=\n))",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?:\A|\n)[ ]*(?P<role>Human|User|Assistant|System|GPT|ASSISTANT|USER):[ \t]*")
_CHATML = re.compile(
    r"<\|im_start\|>(?P<role>\w+)\n(?P<content>.*?)(?:<\|im_end\|>\s*|\Z|(?=<\|im_start\|>))", re.DOTALL
)
_QUESTION = re.compile(r"(?P<prompt>(?:.*\n)?Q:[^\n]*(?:\n(?!A:)[^\n]*)*)\nA:[ ]*(?P<answer>.*)", re.DOTALL)
_ROLES = {
    "system": "system", "human": "user", "user": "user", "instruction": "user", "input": "user", "context": "user",
    "assistant": "assistant", "response": "assistant", "answer": "assistant", "output": "assistant", "gpt": "assistant",
}  # fmt: skip


def turns(text: str) -> list[Message] | None:
    """The turns of a text; None if it is not a conversation. Text before the first mark is the system message."""
    if "<|im_start|>" in text:
        found = [(match["role"], match["content"]) for match in _CHATML.finditer(text)]
        rest = _CHATML.sub("", text)
        return _messages(found) if found and not rest.strip() else None
    for pattern in (_TURNS, _TASK, _WORDS):
        marks = list(pattern.finditer(text))
        roles = [_ROLES[match["role"].lower()] for match in marks]
        if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            continue
        before = text[: marks[0].start()].strip()
        if pattern is _WORDS and before:
            continue  # a text that quotes a conversation
        if pattern is _TASK:  # one answer, which may have headings
            marks = marks[: roles.index("assistant") + 1]
        ends = [match.start() for match in marks[1:]] + [len(text)]
        found = [(match["role"], text[match.end() : end]) for match, end in zip(marks, ends, strict=True)]
        return _messages([("system", before), *found] if before else found)
    if text.count("\nA:") == 1 and (match := _QUESTION.fullmatch(text)):
        return _messages([("user", match["prompt"]), ("assistant", match["answer"])])
    return None


def _messages(found: list[tuple[str, str]]) -> list[Message] | None:
    messages: list[Message] = []
    for name, content in found:
        role, content = _row.ROLES.get(name.lower()) or _ROLES.get(name.lower()), content.strip()
        if role is None:
            return None
        if messages and messages[-1]["role"] == role == "user":
            messages[-1]["content"] += f"\n\n{content}"  # an instruction and its input
        elif content or role == "assistant":
            messages.append(_row.turn({}, role=role, content=content))
    while messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()  # the text ends where the model is to answer
    return messages or None
