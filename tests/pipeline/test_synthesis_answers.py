"""Answers to the requests of a job: each is taken once, and those of later rounds replace earlier ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.synthesis.answers import Answers, write_made
from distill_lab.types import Completion


def test_completions_of_something_else_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    completions = [Completion(id, 0, f"of {id}", None, "stop", 1).to_json() for id in ("b", "a")]
    write_jsonl(path, completions)
    answers = Answers(path)
    assert answers.take("a", 0).content == "of a"
    with pytest.raises(DataError, match="'c' is missing"):
        answers.take("c", 0)
    with pytest.raises(DataError, match="'b' answers none of the requests"):
        answers.close()
    write_jsonl(path, [*completions, completions[0]])
    with pytest.raises(DataError, match="'b' occurs twice"):
        Answers(path)


def test_results_of_later_rounds_replace_earlier_ones(tmp_path: Path) -> None:
    def result(source: str, sample: int, text: str | None) -> dict[str, Any]:
        row = None if text is None else {"id": source, "text": text}
        return {"source": source, "sample": sample, "reason": None if text else "empty", "row": row}

    rounds = [
        [result("a", 0, None), result("a", 1, None), result("b", 0, "b0"), result("b", 1, None), result("c", 0, None)],
        [result("a", 0, None), result("a", 1, "a1"), result("c", 0, None)],
        [result("c", 0, "c2"), result("new", 0, "n")],
    ]
    files = [tmp_path / f"{n}.jsonl" for n in range(3)]
    for path, rows in zip(files, rounds, strict=True):
        write_jsonl(path, rows)
    counts = write_made(*files, tmp_path / "made.jsonl")
    assert [row["text"] for row in read_jsonl(tmp_path / "made.jsonl")] == ["a1", "b0", "c2", "n"]
    assert (counts.rows_in, counts.dropped) == (6, {"empty": 2})
