"""Eval rows: what a model answered to one test prompt, and its grade; one JSON object per line of eval/<model>.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.types import Grade, JsonObject, Message

BAD_GOLD = "bad_gold"
"""`status` of a row whose gold answer the grader cannot read; it does not count."""
MISSING = "missing"
"""`finish_reason` of a row without a completion."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One completion of a test prompt. A prompt without a completion has a row with score 0."""

    id: str
    sample: int
    prompt: list[Message]
    """As the model saw it."""
    output: str
    thinking: str | None
    answer: str | None
    """The gold answer."""
    finish_reason: str
    """stop, length, error or missing."""
    num_tokens: int
    grade: Grade

    @property
    def score(self) -> float:
        """In [0, 1]."""
        return self.grade.score

    @property
    def text(self) -> str:
        """The last message of the prompt."""
        return self.prompt[-1]["content"]

    def question(self, instruction: str) -> str:
        """The last message without the instruction that follows it."""
        return self.text.removesuffix(f"\n{instruction}") if instruction else self.text

    def to_json(self) -> JsonObject:
        """The JSONL row."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> EvalRow:
        """The object that a JSONL row holds. Raises KeyError and TypeError for a row of another form."""
        return cls(**{**row, "grade": Grade(**row["grade"])})


def read_eval_rows(path: Path) -> Iterator[EvalRow]:
    """The rows of an eval file. Raises UserError, naming the file, for rows of another form."""
    for number, found in enumerate(read_jsonl(path), start=1):
        try:
            row = EvalRow.from_json(found)
            _check(row)
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}:{number}: not an eval row ({error}); evaluate the model again") from None
        yield row


def _check(row: EvalRow) -> None:
    """Raise TypeError if a field of a row is of another kind."""
    kinds = {
        "id": isinstance(row.id, str),
        "sample": type(row.sample) is int,
        "prompt": isinstance(row.prompt, list) and bool(row.prompt) and all(map(_is_message, row.prompt)),
        "output": isinstance(row.output, str),
        "thinking": isinstance(row.thinking, (str, type(None))),
        "answer": isinstance(row.answer, (str, type(None))),
        "finish_reason": isinstance(row.finish_reason, str),
        "num_tokens": type(row.num_tokens) is int and row.num_tokens >= 0,
        "grade.score": type(row.grade.score) in (int, float) and 0 <= row.grade.score <= 1,
        "grade.answer": isinstance(row.grade.answer, (str, type(None))),
        "grade.status": isinstance(row.grade.status, str),
    }
    for name, is_right in kinds.items():
        if not is_right:
            raise TypeError(f"its {name} is not what it should be")


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), str)


def first_samples(path: Path) -> Iterator[EvalRow]:
    """The rows of an eval file that hold a prompt's first sample."""
    return (row for row in read_eval_rows(path) if row.sample == 0)
