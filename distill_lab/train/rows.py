"""Training rows from disk: JSONL or Parquet of `{"prompt": [...], "completion": [...]}` -> encoded rows, split in two.

Rows that share a prompt go to the same side of the split, so that the validation loss is taken on prompts never trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill_lab.chat import encode_turns, inspect_template, is_trained
from distill_lab.control_tokens import find_spelled
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.files.parquet import read_parquet
from distill_lab.generation.cut_answers import TOO_LONG
from distill_lab.train.packing import Row
from distill_lab.types import Fields, JsonObject, Message

MIN_ROWS_TO_SPLIT = 10
REFUSED, UNTRAINED = "the chat template refuses it", "no message of the assistant is to be trained"

OnRow = Callable[[Sequence[Message], Sequence[Message], Sequence[Row]], str]
"""Called with prompt, completion and sequences of a row that would be kept; returns why it is dropped; empty: it is not."""


@dataclass(frozen=True)
class Rows:
    """What is trained on and what is held out. A row of several turns may be several sequences (`chat.encode_turns`)."""

    training: list[Row]
    validation: list[Row]
    num_rows: int
    """Rows kept, both sides together."""
    num_validation_rows: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    first_refused: str = ""
    """The first row that the chat template refuses, and why; empty if it takes all."""
    num_spelled: int = 0
    """Rows kept whose text spells control tokens (`<|im_end|>`): they are trained as plain text."""


def read_rows(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    validation_fraction: float,
    seed: int,
    thinking: bool | None = None,
    on_row: OnRow | None = None,
) -> Rows:
    """Read, encode and split the rows of `path`.

    max_length: in tokens; a row with a longer sequence is dropped and counted, never cut. So is a row that the chat template
    refuses, because one row must not stop a training whose teacher is paid already. validation_fraction: share of the
    rows held out, none if there are fewer than MIN_ROWS_TO_SPLIT. Raises DataError naming a malformed row's line,
    NoData where nothing is left to train on, UserError for a missing file.
    """
    sequences: list[list[Row]] = []
    prompts: list[bytes] = []
    dropped: Counter[str] = Counter()
    num_spelled, first_refused = 0, ""
    for each in encoded_rows(path, tokenizer, max_length=max_length, thinking=thinking):
        if each.dropped:
            dropped[each.dropped] += 1
            first_refused = first_refused or each.refused
            continue
        if on_row is not None and (reason := on_row(each.prompt, each.completion, each.sequences)):
            dropped[reason] += 1
            continue
        num_spelled += bool(find_spelled(tokenizer, each.texts))
        sequences.append(each.sequences)
        prompts.append(hashlib.blake2b(json.dumps(each.prompt).encode(), digest_size=16).digest())
    if not sequences:
        remedy = f"raise max_length (now {max_length})" if dropped[TOO_LONG] else "give a file that has rows"
        remedy = f"the first refused one is {first_refused}" if dropped[REFUSED] else remedy
        counts = ", ".join(f"{number} rows: {reason}" for reason, number in dropped.items() if number)
        raise NoData(f"{path}: nothing to train on ({counts or 'no rows'}); {remedy}")
    held_out = _held_out(prompts, validation_fraction, seed)
    return Rows(
        training=[each for index, row in enumerate(sequences) if index not in held_out for each in row],
        validation=[each for index in sorted(held_out) for each in sequences[index]],
        num_rows=len(sequences),
        num_validation_rows=len(held_out),
        dropped=dict(dropped),
        first_refused=first_refused,
        num_spelled=num_spelled,
    )


@dataclass(frozen=True)
class EncodedRow:
    """A row of a file as the trainer sees it."""

    prompt: list[Message]
    completion: list[Message]
    sequences: list[Row]
    """Empty if it is dropped."""
    dropped: str = ""
    """Why it is not trained."""
    refused: str = ""
    """What the chat template says of it, with file and line."""

    @property
    def texts(self) -> list[str]:
        """All texts of its messages."""
        messages = (*self.prompt, *self.completion)
        return [text for message in messages for text in message.values() if isinstance(text, str)]


def encoded_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, thinking: bool | None = None
) -> Iterator[EncodedRow]:
    """Every row of `path` in its order, those that `read_rows` drops too. Raises as `read_rows`."""
    inspect_template(tokenizer)  # a template that is unfit for any row is said at once
    for number, row in _read(path):
        prompt, completion = _messages(row, "prompt", path, number), _messages(row, "completion", path, number)
        if not any(message["role"] == "assistant" for message in completion):
            raise DataError(str(path), number, "its completion has no message of the assistant")
        if not any(map(is_trained, completion)):
            yield EncodedRow(prompt, completion, [], UNTRAINED)
            continue
        try:
            turns = encode_turns(tokenizer, prompt, completion, thinking=thinking)
        except UserError as error:
            yield EncodedRow(prompt, completion, [], REFUSED, f"{path}:{number}: {error}")
            continue
        sequences = [Row.from_encoded(each) for each in turns]
        if any(len(each) + 1 > max_length for each in sequences):
            yield EncodedRow(prompt, completion, [], TOO_LONG)
        else:
            yield EncodedRow(prompt, completion, sequences)


def checked_rows(path: Path) -> Iterator[JsonObject]:
    """The rows of `path` as they are, with prompt and completion. Raises DataError naming a malformed row's line."""
    for number, row in _read(path):
        _messages(row, "prompt", path, number)
        _messages(row, "completion", path, number)
        yield row


def _held_out(prompts: list[bytes], fraction: float, seed: int) -> set[int]:
    """Indices of about `fraction` of the rows: whole groups with one prompt, in seeded order, never all of them."""
    if fraction == 0 or len(prompts) < MIN_ROWS_TO_SPLIT:
        return set()
    groups: dict[bytes, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    members = list(groups.values())
    wanted, chosen = max(1, round(fraction * len(prompts))), set[int]()
    for group in np.random.default_rng(seed).permutation(len(members))[:-1]:
        if len(chosen) >= wanted:
            break
        chosen.update(members[group])
    return chosen


def _read(path: Path) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a file with their 1-based line or row number."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the training rows that `training_set` wrote (.jsonl or .parquet)")
    if path.suffix == ".parquet":
        yield from enumerate(read_parquet(path), start=1)
    else:
        yield from enumerate(read_jsonl(path), start=1)


def _messages(row: Fields, field: str, path: Path, number: int) -> list[Message]:
    messages = row.get(field)
    if not isinstance(messages, list) or not messages:
        raise DataError(
            str(path), number, f"`{field}` must be a list of messages; its fields are {', '.join(row) or 'none'}"
        )
    plain = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(str(path), number, f"`{field}` has a message without a role")
        if not isinstance(message.get("content"), str):
            raise DataError(str(path), number, f"`{field}` has a message whose content is not text")
        # Parquet gives every message every field of the column, as null where the message has none.
        plain.append(_plain({key: value for key, value in message.items() if value is not None}, path, number))
    return plain


def _plain(message: Message, path: Path, number: int) -> Message:
    """A message with `"weight": 0` if it is not trained, also in the form `"train": false`."""
    for field in ("weight", "train"):
        value = message.pop(field, None)
        if value not in (None, 0, 1):
            raise DataError(
                str(path), number, f"a message's {field!r} is {value!r}; give 1 (trained) or 0 (not trained)"
            )
        if value == 0 and value is not None:
            message["weight"] = 0
            break
    return message
