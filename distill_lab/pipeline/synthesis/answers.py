"""Answers -> results: each row and sample with the new row, or with the reason why there is none.

    counts = write_results(rows, completions, results, job="refine", ...)        {"source", "sample", "reason", "row"}
    counts = write_again(rows, results, again)                                    rows that gave nothing
    counts = write_made([results, results of the retry], made)                    the new rows

Answers are found by their request's id and sample, whatever order the engine gave them in; an answer to anything else, and a
missing one, is an error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.completions import read_completions
from distill_lab.pipeline.synthesis.jobs import ABOUT, HISTORY, Row, load
from distill_lab.pipeline.synthesis.reading import unfinished
from distill_lab.pipeline.synthesis.requests import request_id, template_of
from distill_lab.types import Completion, Counts, Fields

Result = dict[str, Any]
"""What became of a row and sample: `{"source", "sample", "reason", "row"}`, a reason or the new row."""


class Answers:
    """The completions of a file by request and sample. Memory holds where they are, not their texts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[tuple[str, int], int] = {}
        for completion, line, offset in read_completions(path):
            key = completion.id, completion.sample
            if key in self._offsets:
                raise DataError(str(path), line, f"sample {completion.sample} of {completion.id!r} occurs twice")
            self._offsets[key] = offset
        self._file = path.open("rb")

    def take(self, id: str, sample: int) -> Completion:
        """The answer to a request, once. Raises DataError if there is none."""
        offset = self._offsets.pop((id, sample), None)
        if offset is None:
            raise DataError(str(self._path), None, f"sample {sample} of {id!r} is missing; run the same command again")
        self._file.seek(offset)
        return Completion.from_json(json.loads(self._file.readline()))

    def close(self) -> None:
        """End. Raises DataError if an answer was not taken: it answers something else."""
        self._file.close()
        if self._offsets:
            id, sample = next(iter(self._offsets))
            raise DataError(str(self._path), None, f"sample {sample} of {id!r} answers none of the requests")


def write_results(
    rows: Path,
    completions: Path,
    path: Path,
    *,
    job: str,
    kind: str,
    template: Fields,
    num_samples: int,
    model: str,
) -> Counts:
    """Write what became of each row and sample; the counts are of these. model: as the rows' history names it."""
    reading, form = load(job), template_of(template)
    dropped: Counter[str] = Counter()
    answers = Answers(completions)
    about = {"job": job, "template": form.name, "model": model}

    def results() -> Iterator[Result]:
        for row in read_jsonl(rows):
            parts = reading.values(row, kind)
            if isinstance(parts, str):
                continue  # counted with the requests
            for sample in range(num_samples):
                given = {part: answers.take(request_id(row["id"], part), sample) for part in parts}
                reasons = (unfinished(answer) for answer in given.values())
                made = next(filter(None, reasons), None) or reading.read(row, given, form)
                if isinstance(made, str):
                    dropped[made] += 1
                    yield {"source": row["id"], "sample": sample, "reason": made, "row": None}
                else:
                    yield {"source": row["id"], "sample": sample, "reason": None, "row": _noted(made, sample, about)}

    number = write_jsonl(path, results())
    answers.close()
    return Counts(number, number - dropped.total(), dict(dropped))


def _noted(row: Row, sample: int, about: Fields) -> Row:
    """The row with its history, and with an id that other samples do not have."""
    row = dict(row)
    meta = dict(row["meta"])
    history = meta.get(HISTORY)
    step = {**about, "from": [row["id"]], **row.pop(ABOUT, {})}
    meta[HISTORY] = [*(history if isinstance(history, list) else []), step]
    return row | {"id": f"{row['id']}.{sample + 1}" if sample else row["id"], "meta": meta}


def write_again(rows: Path, results: Path, path: Path) -> Counts:
    """Write the rows of which no sample gave a new row: they are to be asked again."""
    found: dict[str, bool] = {}
    for result in read_jsonl(results):
        found[result["source"]] = found.get(result["source"], False) or result["row"] is not None
    kept = write_jsonl(path, (row for row in read_jsonl(rows) if found.get(row["id"]) is False))
    return Counts(len(found), kept, {"could be read": len(found) - kept})


def write_made(*files: Path) -> Counts:
    """Write the new rows of all rounds to the last of `files`, in the order of the sources.

    The others are results; those of a later round replace earlier ones of the same source. Counts rows and samples, those
    that gave nothing by their last reason.
    """
    first, *later, path = files
    again = {result["source"]: file for file in later for result in read_jsonl(file)}
    replaced: dict[str, list[Result]] = {}
    for file in later:
        for result in read_jsonl(file):
            if again[result["source"]] == file:
                replaced.setdefault(result["source"], []).append(result)
    dropped: Counter[str] = Counter()

    def merged() -> Iterator[Result]:
        for result in read_jsonl(first):
            if result["source"] not in again:
                yield result
            elif result["sample"] == 0:
                yield from replaced.pop(result["source"])
        for rest in replaced.values():  # draws that an earlier round did not have
            yield from rest

    def rows() -> Iterator[Row]:
        for result in merged():
            if result["row"] is None:
                dropped[result["reason"]] += 1
            else:
                yield result["row"]

    kept = write_jsonl(path, rows())
    return Counts(kept + dropped.total(), kept, dict(dropped))
