"""Scores: Wilson against published intervals and scipy, the bootstrap against theory, nothing dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from distill_lab.errors import DataError, UserError
from distill_lab.evaluation.evaluate import Score, evaluate, read_score
from distill_lab.evaluation.statistics import bootstrap_mean, wilson
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


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (Wilson without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_newcombe_1998(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_equals_scipy_everywhere() -> None:
    for n in (1, 2, 7, 50, 1000):
        for successes in range(0, n + 1, max(1, n // 25)):
            theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
            assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
            assert 0.0 <= wilson(successes, n)[0] <= successes / n <= wilson(successes, n)[1] <= 1.0


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    # Uniform grid on [0, 1], 400 values: the standard error of the mean is sqrt(1/12/400) = 0.01443.
    values = [(i + 0.5) / 400 for i in range(400)]
    low, high = bootstrap_mean(values)
    assert low == pytest.approx(0.5 - 1.96 * 0.01443, abs=0.0015)
    assert high == pytest.approx(0.5 + 1.96 * 0.01443, abs=0.0015)
    assert (low, high) == bootstrap_mean(values)
    assert bootstrap_mean([0.3]) == (0.3, 0.3)


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
    assert result == Score(4, 0.25, wilson(1, 4), tokens, truncated=1, unparseable=1, missing=0, cut_share=0.25)
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
    assert result.ci95 == bootstrap_mean([0.5, 1.0, 0.5])


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
