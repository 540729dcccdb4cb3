"""What travels along the line: prompts, completions, grades, scores and counts. No torch, no network.

Each type is a frozen dataclass with `to_json()` / `from_json()`; on disk it is one JSONL object (see `run.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, str]
"""One chat turn: `{"role": "system" | "user" | "assistant" | "tool", "content": str}` plus, for assistants, an optional
`"thinking": str` (the reasoning trace, kept apart from the content)."""

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked."""

    id: str
    """Unique within a prompts file; the same input row always gets the same id."""
    messages: list[Message]
    """The conversation so far; the last message is the one to be answered."""
    answer: str | None = None
    """The gold answer, where the data has one."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever else the row carried (level, type, source)."""

    def to_json(self) -> dict[str, Any]:
        """The JSONL row."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Prompt:
        """The object a JSONL row holds."""
        return cls(row["id"], row["messages"], row.get("answer"), row.get("meta") or {})


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data set after its adapter: the prompt and, where the data has one, its own completion."""

    prompt: Prompt
    completion: list[Message] | None = None
    """The messages that follow the prompt, the first of them the assistant's. Multi-turn rows keep every later turn."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered to one prompt, once."""

    id: str
    """The prompt's id."""
    sample: int
    """0-based index among the samples of this prompt."""
    content: str
    """The answer, without the thinking and without special tokens."""
    thinking: str | None
    """The reasoning trace without its tags; None where there was none."""
    finish_reason: FinishReason
    """`stop`: the model ended it; `length`: cut at the token limit; `error`: no answer (`error` says why)."""
    num_tokens: int
    """Generated tokens, thinking and end token included."""
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSONL row."""
        row = dataclasses.asdict(self)
        if self.error is None:
            del row["error"]
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
        )


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's verdict on one completion."""

    score: float
    """In [0, 1]; 1 is correct."""
    answer: str | None
    """The answer the grader read out of the completion; None where it found none."""
    status: Literal["ok", "unparseable", "timeout"] = "ok"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a stage did with its rows. `rows_in == kept + sum(dropped.values())` always holds."""

    rows_in: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    def __post_init__(self) -> None:
        assert self.rows_in == self.kept + sum(self.dropped.values()), f"rows do not add up: {self}"

    def to_json(self) -> dict[str, Any]:
        """The JSONL row."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        reasons = "".join(f", {number} dropped: {reason}" for reason, number in self.dropped.items() if number)
        return f"{self.rows_in} in, {self.kept} kept{reasons}"
