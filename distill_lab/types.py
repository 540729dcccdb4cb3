"""Data types that the pipeline passes along: prompts, completions, grades and counts. No torch, no network.

Each type is a frozen dataclass with `to_json()` / `from_json()`; on disk it is one JSONL object (see `run.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

JsonObject = dict[str, object]
"""What a JSON object holds by name; a value is narrowed before it is used."""
Fields = Mapping[str, object]
"""A row of data, or another JSON object, that is only read."""
Message = dict[str, Any]
"""One chat turn: `{"role": "system" | "user" | "assistant" | "tool", "content": str}` plus, for assistants, an optional
`"thinking": str` (the reasoning trace, separate from the content) and `"weight": 0` for a turn that is not trained."""

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation for a model to answer."""

    id: str
    """Unique within a prompts file; the same input row always gets the same id."""
    messages: list[Message]
    """The conversation so far; the model answers the last message."""
    answer: str | None = None
    """The gold answer, if the data has one."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Other fields of the row (level, type, source)."""

    def to_json(self) -> JsonObject:
        """The JSONL row."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Prompt:
        """The object a JSONL row holds."""
        return cls(row["id"], row["messages"], row.get("answer"), row.get("meta") or {})


@dataclass(frozen=True, slots=True)
class Record:
    """One data set row as its adapter returns it: the prompt and, if the data has one, its completion."""

    prompt: Prompt
    completion: list[Message] | None = None
    """The messages after the prompt, starting with the assistant's. Multi-turn rows keep all later turns."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a server counted for one request."""

    input_tokens: int
    """Of the prompt."""
    output_tokens: int
    """Of the answer, including thinking."""
    cached_tokens: int = 0
    """Those of `input_tokens` that the server had in its prompt cache."""
    batch: bool = False
    """Whether the request was part of a batch, which costs half."""
    estimated: bool = False
    """Whether the counts are estimates from the lengths of the texts, because the server does not report them."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer of a model to a prompt."""

    id: str
    """The prompt's id."""
    sample: int
    """0-based index among the samples of this prompt."""
    content: str
    """The answer without thinking and special tokens."""
    thinking: str | None
    """The reasoning trace without its tags; None if there was none."""
    finish_reason: FinishReason
    """`stop`: the model finished; `length`: cut off at the token limit; `error`: no answer (`error` says why)."""
    num_tokens: int
    """Generated tokens, including thinking and the end token."""
    error: str | None = None
    usage: Usage | None = None
    """What a server counted for it; None for local models, and for answers that an earlier run paid for."""

    def to_json(self) -> JsonObject:
        """The JSONL row."""
        row = dataclasses.asdict(self)
        for name in ("error", "usage"):
            if row[name] is None:
                del row[name]
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Completion:
        """The object a JSONL row holds."""
        return cls(
            id=row["id"],
            sample=row["sample"],
            content=row["content"],
            thinking=row["thinking"],
            finish_reason=row["finish_reason"],
            num_tokens=row["num_tokens"],
            error=row.get("error"),
            usage=Usage(**row["usage"]) if row.get("usage") else None,
        )


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's verdict on one completion."""

    score: float
    """In [0, 1]; 1 is correct."""
    answer: str | None
    """The answer the grader extracted from the completion; None if it found none."""
    status: Literal["ok", "unparseable", "timeout", "bad_gold"] = "ok"
    """`unparseable`: no answer, or an ambiguous one. `bad_gold`: the grader cannot read the gold answer, so the row does not
    count."""


class CountsRecord(TypedDict):
    """`Counts` in run.json."""

    rows_in: int
    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows a stage read, kept and dropped. `rows_in == kept + sum(dropped.values())` always holds."""

    rows_in: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Dropped rows by reason."""

    def __post_init__(self) -> None:
        assert self.rows_in == self.kept + sum(self.dropped.values()), f"rows do not add up: {self}"

    def to_json(self) -> CountsRecord:
        """As in run.json."""
        return {"rows_in": self.rows_in, "kept": self.kept, "dropped": dict(self.dropped)}

    def __str__(self) -> str:
        reasons = "".join(f", {number} dropped: {reason}" for reason, number in self.dropped.items() if number)
        return f"{self.rows_in} in, {self.kept} kept{reasons}"
