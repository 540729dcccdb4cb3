"""Prepare data sets as EasyDistill's {instruction, input, output} rows, and record the source of each prepared file.

    rows = instruction_rows(DataConfig(path="tiny:instructions", split="distill[:100]"))
    found = trace_rows(DataConfig(path="alibaba-pai/OmniThought", split="train[:2000]"), rv_min=0.6, cd_min=0.6)
    record_source("data/omnithought_cot.json", dataset="alibaba-pai/OmniThought", slice="train[:2000]")

The record is next to the file, in `<file>.source.json`; it shows when the slice has changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distill_lab.chat import answer_text
from distill_lab.config import STEP_BY_STEP, DataConfig
from distill_lab.data.records import Records, write_prompts
from distill_lab.data.traces import META, select_traces
from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl, write_json
from distill_lab.run import fingerprint
from distill_lab.training_data.reasoning import add_instruction, reasoning_data, threshold_note
from distill_lab.training_data.training_set import instruction_row
from distill_lab.types import Fields, JsonObject


@dataclass(frozen=True, slots=True)
class TraceRows:
    """Reasoning traces that passed the thresholds."""

    num_loaded: int
    """Number of questions read."""
    rows: list[JsonObject] = field(default_factory=list)
    """One row per question with a remaining trace."""
    note: str = ""
    """Description of the filter, with its counts."""


def instruction_rows(data: DataConfig) -> list[JsonObject]:
    """A data set's rows; `output` is empty if a row has no answer. Raises DataError for a malformed row."""
    rows = []
    for record in Records(data):
        answer = record.completion[0] if record.completion else {"content": ""}
        rows.append(instruction_row(record.prompt.messages, answer_text(answer["content"], answer.get("thinking"))))
    return rows


def trace_rows(data: DataConfig, *, rv_min: float, cd_min: float) -> TraceRows:
    """For each question, the best trace that passes both thresholds and did not fail verification, thinking in think tags.

    The instruction ends with the request for steps, so that training matches later use. Raises UnexpectedSchema for data
    without questions and reasoning, DataError for malformed rows, UserError for invalid thresholds.
    """
    note = threshold_note(rv_min, cd_min)
    data = reasoning_data(data, answered=True)
    with TemporaryDirectory() as folder:
        loaded, chosen, asked = (Path(folder) / name for name in ("loaded.jsonl", "chosen.jsonl", "asked.jsonl"))
        num_loaded = write_prompts(data, loaded).kept
        if not num_loaded:
            return TraceRows(0)
        counts = select_traces(loaded, chosen, rv_min=rv_min, cd_min=cd_min)
        add_instruction(chosen, asked, STEP_BY_STEP)
        scored = any(trace["rv"] is not None for row in read_jsonl(loaded) for trace in row["meta"].get(META, ()))
        rows = [
            instruction_row(row["messages"], answer_text(answer["content"], answer.get("thinking")))
            for row in read_jsonl(asked)
            for answer in row["completion"][:1]
        ]
    filtered = f"Filtered by RV/CD ({note}), remaining samples: {counts.kept} (traces: {counts})"
    unfiltered = f"RV/CD scores not found, using raw slice: {counts.kept}"
    return TraceRows(num_loaded, rows, filtered if scored else unfiltered)


def record_source(path: str, **source: object) -> None:
    """Record the source and fingerprint of a prepared file, next to it."""
    write_json(_record(path), _made(path, source))


def is_prepared(path: str, *others: str, **source: object) -> bool:
    """Whether a file was made from `source` and the others exist too; files made elsewhere or edited count as prepared."""
    if not all(Path(each).exists() for each in (path, *others)):
        return False
    return is_edited(path) or read_json(str(_record(path))) == _made(path, source)


def is_edited(path: str) -> bool:
    """Whether a file was made or changed by someone else than `record_source`'s caller."""
    made = read_json(str(_record(path))) if _record(path).exists() else {}
    return made.get("file") != fingerprint(Path(path))


def _made(path: str, source: Fields) -> JsonObject:
    return {**source, "file": fingerprint(Path(path))}


def _record(path: str) -> Path:
    return Path(path).with_suffix(".source.json")


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises DataError naming file and line if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(path, error.lineno, f"not JSON ({error.msg})") from None
