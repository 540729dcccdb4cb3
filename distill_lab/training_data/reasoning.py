"""What recipes that teach reasoning share: data that has some, the instruction to think, the grader of final answers.

data = reasoning_data(config.data, answered=True)              refuses rows without a question and its reasoning
add_instruction(prompts, path, STEP_BY_STEP)                   prompts.jsonl -> prompts.jsonl
summary_prompts(rows, path); with_summaries(rows, summaries, path)     train.jsonl -> train.jsonl, thinking shortened
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.columns import Columns
from distill_lab.data.records import first_row
from distill_lab.data.traces import MAX_LEVEL, answer_fields, minimum_level
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.training_data.training_set import CUT, EMPTY, ERROR
from distill_lab.types import Completion, Counts, JsonObject, Message, Prompt

SCHEMA = "Unexpected OmniThought schema, please inspect omni[0]"
REASONS = {"length": CUT, "error": ERROR}
SUMMARISE = (
    "Here are a question and the reasoning that answers it. Write the reasoning again, much shorter: only the steps that "
    "lead to the answer, one line each, without trials and doubts.\n\nQuestion:\n{question}\n\nReasoning:\n{thinking}"
)


class UnexpectedSchema(UserError):
    """Rows without a question or its reasoning: carries the first one, as JSON."""

    def __init__(self, row: str) -> None:
        self.row = row
        super().__init__(f"{SCHEMA}\n{row}")


def reasoning_data(data: DataConfig, *, answered: bool) -> DataConfig:
    """`data`, with the adapter that reads its first row as a question and, if `answered`, its reasoning.

    A flat row's `answer` is its reasoning if it has no other field for that, as in the requirements; else it is the
    gold answer. Raises UnexpectedSchema if that row has no question or, if `answered`, nothing that could be
    reasoning. What else may be wrong with rows shows when they are read.
    """
    row = first_row(data)
    if row is None or Columns.parse(data.columns).adapter is not None:
        return data
    name = adapters.choose(row) if data.adapter == adapters.AUTO else data.adapter
    if name is not None:
        adapter = adapters.load(name)
        try:
            completion = adapter.record(row, "0").completion
        except ValueError:
            if adapter.matches(row):
                return data  # reading the rows says which field is malformed
        else:
            if completion or not answered or "reasoning" in row or "generations" in row:
                return data
    if None not in answer_fields(row) and data.adapter == adapters.AUTO:
        return data.model_copy(update={"adapter": "omnithought"})
    raise UnexpectedSchema(json.dumps(row, ensure_ascii=False, default=str))


def add_instruction(prompts: Path, path: Path, instruction: str) -> Counts:
    """Write `prompts` with `instruction` on a separate line after each user's last message; the rest stays."""

    def asked(given: Sequence[Message]) -> list[Message]:
        messages = [dict(message) for message in given]
        if instruction and messages[-1]["role"] == "user":
            messages[-1]["content"] += f"\n{instruction}"
        return messages

    number = write_jsonl(path, (row | {"messages": asked(row["messages"])} for row in read_jsonl(prompts)))
    return Counts(number, number)


def threshold_note(rv_min: float, cd_min: float) -> str:
    """What thresholds mean: `0.6 -> level 6 of 9`. Raises UserError for one that is not one."""
    told = [f"{name} at least {value:g} -> level {minimum_level(value)} of {MAX_LEVEL}" for name, value in (
        ("RV", rv_min), ("CD", cd_min))]  # fmt: skip
    return ", ".join(told)


def has_thinking(rows: Path) -> bool:
    """Whether any completion of training rows has thinking apart from its content."""
    return any(message.get("thinking") for row in read_jsonl(rows) for message in row["completion"])


def summary_prompts(rows: Path, path: Path) -> Counts:
    """Write a prompt for each training row with thinking, which asks for a summary of it; its id is the row's number."""
    counts: Counter[str] = Counter()

    def prompts() -> Iterator[JsonObject]:
        for number, row in enumerate(read_jsonl(rows)):
            thinking = _thinking(row["completion"])
            if thinking is None:
                counts["no thinking"] += 1
                continue
            text = SUMMARISE.format(question=row["prompt"][-1]["content"], thinking=thinking)
            yield Prompt(str(number), [{"role": "user", "content": text}]).to_json()

    kept = write_jsonl(path, prompts())
    return Counts(kept + counts.total(), kept, dict(counts))


def with_summaries(rows: Path, summaries: Path, path: Path) -> Counts:
    """Write the training rows with each thinking replaced by its summary; rows whose summary failed are left out."""
    found = {row["id"]: Completion.from_json(row) for row in read_jsonl(summaries)}
    dropped: Counter[str] = Counter()

    def changed() -> Iterator[JsonObject]:
        for number, row in enumerate(read_jsonl(rows)):
            if _thinking(row["completion"]) is None:
                yield row
                continue
            summary = found[str(number)]
            if summary.finish_reason != "stop" or not summary.content.strip():
                dropped[f"summary {REASONS.get(summary.finish_reason, EMPTY)}"] += 1
                continue
            last: Message = row["completion"][-1] | {"thinking": summary.content.strip()}
            yield {**row, "completion": [*row["completion"][:-1], last]}

    kept = write_jsonl(path, changed())
    return Counts(kept + dropped.total(), kept, dict(dropped))


def _thinking(completion: Sequence[Message]) -> str | None:
    return completion[-1].get("thinking") or None
