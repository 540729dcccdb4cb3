"""Gold answers that a grader cannot read: named, counted, left out of every mean; none that it can read is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.cli import main
from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.evaluation.pass_at_k import best_of_k
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.grade import check_golds, grade
from distill_lab.grading.graders import BadGoldError, load_grader
from distill_lab.training_data.selection import write_correct
from distill_lab.types import Completion, Prompt

GOLDS = {"a": "18", "b": "3:30", "c": "5", "d": "blue"}


def write(folder: Path, golds: dict[str, str]) -> tuple[Path, Path]:
    prompts: list[dict[str, Any]] = [
        {"id": name, "messages": [{"role": "user", "content": "?"}], "answer": gold, "meta": {}}
        for name, gold in golds.items()
    ]
    completions = [
        {"id": name, "sample": 0, "content": text, "thinking": None, "finish_reason": "stop", "num_tokens": 3}
        for name, text in zip(golds, ("18", "30", "6", "5"), strict=False)
    ]
    write_jsonl(folder / "prompts.jsonl", prompts)
    write_jsonl(folder / "completions.jsonl", completions)
    return folder / "prompts.jsonl", folder / "completions.jsonl"


def test_they_are_counted_named_and_not_in_the_mean(tmp_path: Path) -> None:
    inputs = write(tmp_path, GOLDS)
    tally = grade(*inputs, tmp_path / "graded.jsonl", "numeric")
    assert (tally.num_rows, tally.ok, tally.unparseable, tally.timeout, tally.bad_gold) == (4, 2, 0, 0, 2)
    assert (tally.score, tally.bad_gold_ids) == (0.5, ("b", "d"))
    assert "2 left out because their gold answer cannot be read (b, d)" in str(tally)
    statuses = [row["grade"]["status"] for row in read_jsonl(tmp_path / "graded.jsonl")]
    assert statuses == ["ok", "bad_gold", "ok", "bad_gold"]
    score = evaluate(*inputs, tmp_path / "eval.jsonl", "numeric")
    assert (score.n, score.score, score.bad_gold, score.bad_gold_ids) == (2, 0.5, 2, ("b", "d"))
    assert best_of_k(tmp_path / "graded.jsonl").num_questions == 2
    counts = write_correct(inputs[0], tmp_path / "graded.jsonl", tmp_path / "correct.parquet")
    assert (counts.kept, counts.dropped["no readable gold answer"]) == (1, 2)


def test_none_that_can_be_read_is_an_error_that_leaves_no_file(tmp_path: Path) -> None:
    inputs = write(tmp_path, {"b": "3:30", "d": "blue"})
    words = r"the grader numeric cannot read any gold answer \(first: b, '3:30'\); choose another --grader"
    with pytest.raises(UserError, match=words):
        grade(*inputs, tmp_path / "graded.jsonl", "numeric")
    assert not (tmp_path / "graded.jsonl").exists()
    with pytest.raises(UserError, match=words):
        check_golds(inputs[0], load_grader("numeric"))
    with pytest.raises(UserError, match=r"no gold answer that the grader can read \(first: b\)"):
        evaluate(*inputs, tmp_path / "eval.jsonl", "numeric")


def test_they_are_found_before_anything_is_generated(tmp_path: Path) -> None:
    prompts, _ = write(tmp_path, GOLDS)
    assert check_golds(prompts, load_grader("numeric")) == ["b", "d"]
    assert check_golds(prompts, load_grader("exact")) == []


def test_a_single_grade_says_what_is_wrong() -> None:
    with pytest.raises(BadGoldError, match=r"prompt p: the gold answer '3:30' is not a number"):
        load_grader("numeric")(Prompt("p", [], "3:30"), Completion("p", 0, "3", None, "stop", 1))


def test_a_gold_label_that_is_not_in_the_list_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "messages": [], "answer": gold, "meta": {"labels": ["a", "b"]}} for n, gold in enumerate("abx")
    ]
    done = {"sample": 0, "content": "a", "thinking": None, "finish_reason": "stop", "num_tokens": 1}
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    write_jsonl(tmp_path / "completions.jsonl", [{"id": row["id"], **done} for row in rows])
    tally = grade(tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl", tmp_path / "graded.jsonl", "label")
    assert (tally.score, tally.bad_gold, tally.bad_gold_ids) == (0.5, 1, ("2",))


def test_the_command_names_them_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, completions = write(tmp_path, GOLDS)
    command = ["grade", "--prompts", str(prompts), "--completions", str(completions), "--grader", "numeric"]
    assert main([*command, "--out", str(tmp_path / "graded.jsonl")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 left out because their gold answer cannot be read (b, d); mean score 0.500" in said
