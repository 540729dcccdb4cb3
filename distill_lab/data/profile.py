"""What a data set holds, before anything is spent on it: DataConfig -> Profile, for `distill data`.

    found = profile(DataConfig(path="data.jsonl"), tokenizer=tokenizer, max_length=1024, test=DataConfig(path="test.jsonl"))
    found.counts, found.columns, found.examples, found.duplicates, found.overlaps

Reads the rows once, and those of the test. Lengths are in tokens of the chat template, or in words without a tokenizer.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.chat import encode_turns, prompt_ids
from distill_lab.config import DataConfig
from distill_lab.control_tokens import SOLUTION_TAGS, THINKING_TAGS, find_spelled
from distill_lab.data import adapters
from distill_lab.data.contamination import NUM_WORDS, Overlap, TestPrompts
from distill_lab.data.near_duplicates import Duplicates
from distill_lab.data.records import Records, write_prompts
from distill_lab.data.sources import Row
from distill_lab.data.words import width, words
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.types import Counts, JsonObject, Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_EXAMPLES = 3
MAX_MEASURED = 20_000
"""Rows whose length is measured, the first ones; tokenizing more takes minutes."""
MAX_PAIRS = 20
"""Pairs of texts that are kept."""
MAX_LISTED = 100
"""Different control tokens and columns that are counted by name."""
PERCENTILES = (50, 90, 99, 100)
CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]")
"""Control tokens of well-known families, for data without a tokenizer."""
THINKING = tuple(tag for pair in (*THINKING_TAGS, SOLUTION_TAGS, ("[THINK]", "[/THINK]")) for tag in pair)


@dataclass(slots=True)
class Column:
    """A column of the source."""

    filled: int = 0
    """Rows in which it is neither missing nor null nor empty."""
    unused: int = 0
    """Rows in which the adapter left it unread: it is only in the prompt's meta."""
    example: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an example."""

    text: str
    trained: bool
    """Whether the student learns to write it."""


@dataclass(slots=True)
class Profile:
    """What a data set holds."""

    path: str
    split: str
    counts: Counts = field(default_factory=lambda: Counts(0, 0))
    invalid: list[DataError] = field(default_factory=list)
    """The first rows that cannot be read."""
    adapters: Counter[str] = field(default_factory=Counter)
    """How many rows each adapter read."""
    columns: dict[str, Column] = field(default_factory=dict)
    parts: Counter[str] = field(default_factory=Counter)
    """How many rows have a system prompt, an answer to learn, a gold answer, several turns, thinking apart."""
    unit: str = "words"
    prompt_lengths: list[int] = field(default_factory=list)
    row_lengths: list[int] = field(default_factory=list)
    """Of the longest sequence of each row, prompt and answer."""
    num_cut: int = 0
    """Rows that training would drop because they are longer than `max_length`."""
    max_length: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Rows that the chat template refuses, by reason."""
    control: Counter[str] = field(default_factory=Counter)
    """Rows that spell each control token."""
    thinking: Counter[str] = field(default_factory=Counter)
    """Rows that spell each thinking tag in a text that is not thinking."""
    duplicates: Duplicates = field(default_factory=Duplicates)
    near: list[tuple[str, Overlap]] = field(default_factory=list)
    num_near: int = 0
    test: str = ""
    num_test: int = 0
    overlaps: Counter[str] = field(default_factory=Counter)
    """Prompts that overlap with the test, by reason."""
    overlap_pairs: list[tuple[str, Overlap]] = field(default_factory=list)
    examples: list[tuple[str, list[Piece]]] = field(default_factory=list)
    """Id and pieces of the first rows."""

    @property
    def unused(self) -> dict[str, Column]:
        """Columns that no row's prompt or answer holds."""
        return {
            name: column for name, column in self.columns.items() if column.filled and column.unused == column.filled
        }


class _Noting(Records):
    """Records that note each row's columns and adapter."""

    def __init__(self, config: DataConfig, found: Profile) -> None:
        super().__init__(config)
        self._found = found

    def _record(self, row: Row) -> Record:
        record = super()._record(row)
        fields = row.fields or {}
        name = self.config.adapter if self.config.adapter != adapters.AUTO else adapters.choose(fields) or self.adapter
        self._found.adapters[name] += 1
        meta = {key.lower() for key in record.prompt.meta}
        for name, value in fields.items():
            if value in (None, "", [], {}) or (
                name not in self._found.columns and len(self._found.columns) >= MAX_LISTED
            ):
                continue
            column = self._found.columns.setdefault(str(name), Column())
            column.filled += 1
            column.unused += str(name).lower() in meta
            column.example = column.example or (value if isinstance(value, str) else repr(value))[:200]
        return record


def profile(
    data: DataConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    thinking: bool | None = None,
    max_length: int = 1024,
    test: DataConfig | None = None,
    num_words: int = NUM_WORDS,
) -> Profile:
    """Read `data` and say what is in it; rows that cannot be read are counted. thinking, max_length: as in training.

    Raises UserError for a source, a split or a test that cannot be read, NoData if no row can be.
    """
    found = Profile(data.path, data.split, unit="tokens" if tokenizer else "words", max_length=max_length)
    records = _Noting(data.model_copy(update={"skip_invalid": True}), found)
    with tempfile.TemporaryDirectory() as folder:
        prompts, tests = Path(folder) / "prompts.jsonl", Path(folder) / "tests.jsonl"
        if test:
            found.test, found.num_test = test.path, write_prompts(test, tests).kept

        def rows() -> Iterator[JsonObject]:
            for record in records:
                _look(found, record, tokenizer, thinking)
                yield {**record.prompt.to_json(), **({"completion": record.completion} if record.completion else {})}

        write_jsonl(prompts, rows())
        found.counts, found.invalid = records.counts, records.invalid
        if not found.counts.kept:
            first = f"; the first: {found.invalid[0]}" if found.invalid else ""
            raise NoData(f"{data.path}: no row of {data.split} can be read ({found.counts}){first}")
        for id, pair in found.duplicates.near():
            found.num_near += 1
            if len(found.near) < MAX_PAIRS:
                found.near.append((id, pair))
        if test:
            _compare(found, prompts, tests, num_words)
    return found


def _compare(found: Profile, prompts: Path, tests: Path, num_words: int) -> None:
    index = TestPrompts(read_jsonl(tests), num_words=num_words)
    for row in read_jsonl(prompts):
        index.count(row)
    for row in read_jsonl(prompts):
        if overlap := index.find(row):
            found.overlaps[overlap.reason] += 1
            if len(found.overlap_pairs) < MAX_PAIRS:
                found.overlap_pairs.append((row["id"], overlap))


def _look(found: Profile, record: Record, tokenizer: PreTrainedTokenizerBase | None, thinking: bool | None) -> None:
    """Add one record to the profile."""
    prompt, completion = record.prompt.messages, record.completion or []
    messages = [*prompt, *completion]
    found.parts.update({
        "a system prompt": any(message["role"] == "system" for message in messages),
        "an answer to learn": bool(completion),
        "a gold answer": record.prompt.answer is not None,
        "several turns": sum(message["role"] == "user" for message in messages) > 1,
        "thinking apart from the answer": any(message.get("thinking") for message in messages),
    })  # fmt: skip
    texts = [message["content"] for message in messages]
    controls = {token for text in texts for token in CONTROL.findall(text)}
    if tokenizer is not None:
        controls |= find_spelled(tokenizer, texts)
    found.control.update(
        token for token in controls - set(THINKING) if len(found.control) < MAX_LISTED or token in found.control
    )
    found.thinking.update({tag for text in texts for tag in THINKING if tag in text})
    found.duplicates.add(record.prompt)
    wanted = len(found.examples) < NUM_EXAMPLES
    if len(found.row_lengths) + found.refused.total() < MAX_MEASURED or wanted:
        _measure(found, record, tokenizer, thinking, show=wanted)


def _measure(
    found: Profile, record: Record, tokenizer: PreTrainedTokenizerBase | None, thinking: bool | None, *, show: bool
) -> None:
    """Lengths of a record, and its pieces if it is to be shown."""
    prompt, completion = record.prompt.messages, record.completion or []
    if tokenizer is None:
        lengths = [sum(width(word) for word in words(_whole(part))) for part in (prompt, completion)]
        found.prompt_lengths.append(round(lengths[0]))
        found.row_lengths.append(round(sum(lengths)))
        if show:
            found.examples.append((record.prompt.id, _plain_pieces(prompt, completion)))
        return
    try:
        if any(message["role"] == "assistant" for message in completion):
            encoded = encode_turns(tokenizer, prompt, completion, thinking=thinking)
            sequences = [(each.input_ids, each.loss_mask) for each in encoded]
        else:
            ids = prompt_ids(tokenizer, prompt, thinking=thinking)
            sequences = [(ids, [False] * len(ids))]
    except UserError as error:
        found.refused[str(error).splitlines()[0][:300]] += 1
        return
    longest = max(len(ids) for ids, _ in sequences)
    found.prompt_lengths.append(sequences[0][1].index(True) if True in sequences[0][1] else len(sequences[0][0]))
    found.row_lengths.append(longest)
    found.num_cut += longest + 1 > found.max_length
    if show:
        found.examples.append(
            (record.prompt.id, [piece for ids, mask in sequences for piece in _pieces(tokenizer, ids, mask)])
        )


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[bool]) -> list[Piece]:
    """The tokens as text, cut at each change between trained and not."""
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            text = str(
                tokenizer.decode(list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            )
            pieces.append(Piece(text, mask[start]))
            start = end
    return pieces


def _plain_pieces(prompt: Sequence[Message], completion: Sequence[Message]) -> list[Piece]:
    """The conversation without a chat template: a line with the role, then the text."""
    pieces = [Piece(f"{message['role']}: {_whole([message])}\n", False) for message in prompt]
    for message in completion:
        pieces += [Piece(f"{message['role']}: ", False), Piece(_whole([message]), message["role"] == "assistant")]
    return pieces


def _whole(messages: Sequence[Message]) -> str:
    """The texts of messages, thinking in front of what follows it."""
    return "\n".join(
        f"{message['thinking']}\n{message['content']}" if message.get("thinking") else message["content"]
        for message in messages
    )


def percentile(lengths: Sequence[int], share: int) -> int:
    """The length that `share` percent of the rows do not exceed (nearest rank)."""
    ordered = sorted(lengths)
    return ordered[max(0, -(-share * len(ordered) // 100) - 1)]
