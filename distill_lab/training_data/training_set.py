"""Prompts and completions joined into training rows.

Data in: prompts.jsonl and completions.jsonl (or the completions that the data set brought along, in prompts.jsonl).
Data out: rows `{"prompt": [messages], "completion": [messages]}`, JSONL, or Parquet if the path says so.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from distill_lab.chat import answer_text
from distill_lab.errors import DataError
from distill_lab.files.id_index import IdIndex
from distill_lab.files.jsonl import atomic_path, parse_json_object, read_jsonl, write_json, write_jsonl
from distill_lab.generation.completions import read_completions
from distill_lab.generation.cut_answers import CUT
from distill_lab.types import Completion, Counts, Fields, JsonObject, Message, Prompt

NO_COMPLETION, ERROR, EMPTY = "no completion", "error", "empty"
NO_PROMPT, DUPLICATE = "no prompt", "duplicate"

PARQUET_BATCH_ROWS = 1024


def write_training_set(
    prompts: Path, path: Path, *, completions: Path | None = None, thinking: Literal["keep", "drop"] = "keep"
) -> Counts:
    """Write the training rows to `path`, atomically: in the order of `prompts`, each prompt's samples in their order.

    With `completions`, one row per usable completion (graded ones too), and `rows_in` counts completions; without,
    each prompt's own completion, and `rows_in` counts prompts. Left out, by reason: "no completion" (own), "cut at
    the token limit", "error", "empty" (an assistant's turn without an answer), "no prompt" (a completion to a prompt
    that is not in `prompts`), "duplicate" (the same sample twice). `thinking="drop"` leaves the completions' thinking
    out. Memory holds two integers per completion and a digest per prompt, not the texts. Raises DataError naming a malformed
    row's line.
    """
    dropped: Counter[str] = Counter()
    pairs = _own(prompts, dropped) if completions is None else _joined(prompts, completions, dropped)
    rows = (
        {"prompt": prompt, "completion": [_plain(message, thinking) for message in completion]}
        for prompt, completion in pairs
    )
    kept = _write_parquet(path, rows) if path.suffix == ".parquet" else write_jsonl(path, rows)
    return Counts(kept + dropped.total(), kept, dict(dropped))


def _own(prompts: Path, dropped: Counter[str]) -> Iterator[tuple[list[Message], list[Message]]]:
    for prompt, completion in _prompts(prompts):
        while completion and completion[-1]["role"] != "assistant":
            completion.pop()
        if not completion:
            dropped[NO_COMPLETION] += 1
        elif any(message["role"] == "assistant" and not message["content"].strip() for message in completion):
            dropped[EMPTY] += 1
        else:
            yield prompt.messages, completion


def _joined(prompts: Path, completions: Path, dropped: Counter[str]) -> Iterator[tuple[list[Message], list[Message]]]:
    found, used = _Answers(completions), 0
    with completions.open("rb") as file:
        for prompt, _ in _prompts(prompts):
            answers: dict[int, Completion] = {}
            for offset in found.of(prompt.id):
                used += 1
                file.seek(offset)
                answer = Completion.from_json(json.loads(file.readline()))
                if answer.sample in answers:
                    dropped[DUPLICATE] += 1
                else:
                    answers[answer.sample] = answer
            for _, answer in sorted(answers.items()):
                if reason := _unusable(answer):
                    dropped[reason] += 1
                    continue
                message: Message = {"role": "assistant", "content": answer.content}
                if answer.thinking:
                    message["thinking"] = answer.thinking
                yield prompt.messages, [message]
    if used < len(found):
        dropped[NO_PROMPT] += len(found) - used


def _unusable(answer: Completion) -> str | None:
    if answer.finish_reason == "error":
        return ERROR
    if answer.finish_reason == "length":
        return CUT
    return None if answer.content.strip() else EMPTY


class _Answers:
    """Where the completions of a file are, by prompt: two integers for each, and an entry for each prompt."""

    def __init__(self, completions: Path) -> None:
        self._offsets, self._earlier = array("Q"), array("Q")
        """Of each completion: its place in the file, and 1 + the number of the one before it of the same prompt, or 0."""
        self._last = IdIndex()
        for completion, _, offset in read_completions(completions):
            before = self._last.put(completion.id, len(self._offsets))
            self._offsets.append(offset)
            self._earlier.append(0 if before is None else before + 1)

    def __len__(self) -> int:
        return len(self._offsets)

    def of(self, prompt_id: str) -> list[int]:
        """The byte offsets of a prompt's completions, in the order of the file."""
        last, offsets = self._last.get(prompt_id), list[int]()
        number = 0 if last is None else last + 1
        while number:
            offsets.append(self._offsets[number - 1])
            number = self._earlier[number - 1]
        return offsets[::-1]


def _prompts(path: Path) -> Iterator[tuple[Prompt, list[Message]]]:
    """The prompts and the data's own completions. Raises DataError for rows that are not prompts and ids that come twice."""
    seen = IdIndex()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = parse_json_object(line, str(path), number)
            if not isinstance(row.get("id"), str) or not _is_conversation(row.get("messages")):
                raise DataError(str(path), number, "expected a prompt: an id (text) and messages with role and content")
            if row.get("completion") and not _is_conversation(row["completion"]):
                raise DataError(str(path), number, "expected the completion as messages with role and content")
            prompt = Prompt.from_json(row)
            if not seen.add(prompt.id, number):
                raise DataError(str(path), number, f"the id {prompt.id!r} comes twice; every prompt needs its own")
            yield prompt, list(row.get("completion") or [])


def _is_conversation(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in value
        )
    )


def _plain(message: Message, thinking: Literal["keep", "drop"]) -> Message:
    if thinking == "keep" and message.get("thinking"):
        return message
    return {key: value for key, value in message.items() if key != "thinking"}


def _write_parquet(path: Path, rows: Iterable[Fields]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    messages = pa.list_(pa.struct([("role", text), ("content", text), ("thinking", text), ("weight", pa.int8())]))
    schema = pa.schema([("prompt", messages), ("completion", messages)])
    number, left = 0, iter(rows)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(left, PARQUET_BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist([dict(row) for row in batch], schema=schema))
            number += len(batch)
    return number


def instruction_row(messages: Sequence[Message], output: str) -> JsonObject:
    """A conversation and its answer as `{"instruction", "input", "output"}`; an input has become part of the instruction,
    because EasyDistill reads that alone.

    A system message becomes `system`. What has more turns becomes `{"messages": [...]}`, which the lab reads as well.
    """
    system = [message["content"] for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(system) :]
    if len(rest) == 1 and rest[0]["role"] == "user":
        row = {"instruction": rest[0]["content"], "input": "", "output": output}
        return {"system": system[0], **row} if system else row
    return {"messages": [*messages, {"role": "assistant", "content": output}]}


def export_rows(rows: Path, path: Path) -> None:
    """Write training rows as a JSON array of {instruction, input, output}, thinking in think tags."""
    pairs = ((row["prompt"], row["completion"][0]) for row in read_jsonl(rows))
    write_json(path, [instruction_row(prompt, answer_text(a["content"], a.get("thinking"))) for prompt, a in pairs])
