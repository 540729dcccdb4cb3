"""Scores: every item counted, none dropped in silence, and what a prompt with several samples scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.errors import DataError, UserError
from distill_lab.evaluation.evaluate import Score, evaluate, read_score
from distill_lab.evaluation.intervals import bounded_mean, proportion
from distill_lab.files.jsonl import read_jsonl, write_jsonl


def prompt(index: int, answer: str | None = "yes", **more: Any) -> dict[str, Any]:
    return {"id": f"test-{index}", "messages": [{"role": "user", "content": f"q{index}"}], "answer": answer, **more}


def completion(index: int, content: str = "yes", sample: int = 0, **more: Any) -> dict[str, Any]:
    row = {"id": f"test-{index}", "sample": sample, "content": content, "thinking": None}
    return {**row, "finish_reason": "stop", "num_tokens": 4, **more}


@pytest.fixture
def score(tmp_path: Path):
    def run(prompts: list[dict[str, Any]], completions: list[dict[str, Any]], grader: str = "exact") -> Score:
        write_jsonl(tmp_path / "prompts.jsonl", prompts)
        write_jsonl(tmp_path / "completions.jsonl", completions)
        path = tmp_path / "eval/m.jsonl"
        return evaluate(tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl", path, grader)

    return run


def test_binary_score_and_file(score: Any, tmp_path: Path) -> None:
    result = score(
        [prompt(i) for i in range(4)],
        [
            completion(2, "no"),
            completion(0),
            completion(1, "yes", finish_reason="length", num_tokens=16),
            completion(3, ""),
        ],
    )
    tokens = (4 + 4 + 16 + 4) / 4
    assert result == Score(
        4, 0.25, proportion(1, 4), tokens, truncated=1, unparseable=1, missing=0, cut_share=0.25, correct=1
    )
    rows = list(read_jsonl(tmp_path / "eval/m.jsonl"))
    assert [row["id"] for row in rows] == ["test-0", "test-1", "test-2", "test-3"]
    assert rows[0] == {
        "id": "test-0",
        "sample": 0,
        "prompt": [{"role": "user", "content": "q0"}],
        "output": "yes",
        "thinking": None,
        "answer": "yes",
        "finish_reason": "stop",
        "num_tokens": 4,
        "grade": {"score": 1.0, "answer": "yes", "status": "ok"},
    }
    assert read_score(tmp_path / "eval/m.jsonl") == result
    assert json.loads(json.dumps(result.to_json()))["ci95"] == list(result.ci95)


def test_missing_and_failed_completions_count_as_wrong(score: Any) -> None:
    failed = completion(1, "", finish_reason="error", num_tokens=0, error="timeout")
    result = score([prompt(i) for i in range(4)], [completion(0), failed])
    assert (result.n, result.score, result.missing, result.mean_tokens) == (4, 0.25, 3, 4.0)


def test_no_completions_at_all_is_a_score_of_zero(score: Any) -> None:
    result = score([prompt(0), prompt(1)], [])
    assert (result.n, result.score, result.missing, result.mean_tokens) == (2, 0.0, 2, 0.0)


def test_several_samples_are_averaged_per_prompt_and_the_missing_one_counts(score: Any) -> None:
    samples = [completion(0), completion(0, "no", sample=1), completion(1), completion(1, sample=1), completion(2)]
    result = score([prompt(i) for i in range(3)], samples)
    assert (result.n, result.score, result.missing) == (3, pytest.approx((0.5 + 1 + 0.5) / 3), 1)
    assert result.ci95 == bounded_mean([0.5, 1.0, 0.5])


def test_free_text_is_scored_against_the_data_own_completion(score: Any) -> None:
    reference = [{"role": "assistant", "content": "the cat lay on a mat"}]
    result = score([prompt(0, None, completion=reference)], [completion(0, "the cat sat on the mat")], "overlap")
    assert result.score == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prompts", "completions", "error", "words"),
    [
        ([], [], UserError, "no prompts"),
        ([prompt(0)], [completion(0), completion(9)], UserError, r"1 completions .*test-9"),
        ([prompt(0)], [completion(0), completion(0)], DataError, r"completions.jsonl:2.*second completion of test-0"),
        ([prompt(0), prompt(0)], [completion(0)], DataError, r"prompts.jsonl:2.*test-0"),
        ([prompt(0, None)], [completion(0)], UserError, "test-0 has no gold answer"),
        ([{"id": "test-0"}], [], DataError, r"prompts.jsonl:1.*messages"),
        ([prompt(0)], [{"id": "test-0"}], DataError, r"completions.jsonl:1.*sample"),
    ],
)
def test_faults_are_named_and_leave_no_file(
    score: Any, tmp_path: Path, prompts: list[Any], completions: list[Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        score(prompts, completions)
    assert not list((tmp_path / "eval").glob("*"))
