"""Paired tests against scipy and by hand, the summary's arithmetic, and models answering side by side."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.compare import Comparison, compare_models
from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.speed import Speed
from distill_lab.evaluation.statistics import Paired, mcnemar, paired, retention_interval, sign_flip, wilson
from distill_lab.evaluation.summary import summarize
from distill_lab.files.jsonl import write_jsonl
from distill_lab.report.side_by_side import render_comparison
from distill_lab.types import Completion
from tests.helpers import eval_row


def eval_file(path: Path, scores: Mapping[str, float] | Sequence[float]) -> Path:
    named = scores if isinstance(scores, Mapping) else {str(i): score for i, score in enumerate(scores)}
    write_jsonl(path, [eval_row(name, score) for name, score in named.items()])
    return path


def speed(seconds: float, single: float, p95: float = 1.0) -> Speed:
    return Speed(
        tokens_per_s=100 / seconds,
        tokens_per_s_single=100 / single,
        seconds_per_answer=seconds,
        seconds_per_answer_single=single,
        latency_p50_s=0.5,
        latency_p95_s=p95,
        mean_tokens=100.0,
        num_parameters=1000,
        peak_memory_bytes=None,
    )


def score(successes: int, n: int = 10) -> Score:
    return Score(n, successes / n, wilson(successes, n), 20.0, 0, 0, 0)


def test_mcnemar_equals_the_binomial_test() -> None:
    for losses in range(0, 30, 3):
        for wins in range(25):
            theirs = binomtest(losses, losses + wins, 0.5).pvalue if losses + wins else 1.0
            assert mcnemar(losses, wins) == pytest.approx(theirs, abs=1e-12)
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(1500, 1700) == pytest.approx(binomtest(1500, 3200).pvalue)


def test_paired_binary_by_hand(tmp_path: Path) -> None:
    # 10 pairs: 5 won, 1 lost, 3 both right, 1 both wrong. Exact McNemar: 2 * (1 + 6) / 64.
    base = eval_file(tmp_path / "base.jsonl", [0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    student = eval_file(tmp_path / "student.jsonl", [1, 1, 1, 1, 1, 0, 1, 1, 1, 0])
    result = paired(base, student)
    assert (result.gain, result.p_value, result.test) == (pytest.approx(0.4), 14 / 64, "exact McNemar")
    # Differences: mean 0.4, variance 0.44; the resampled mean moves in tenths.
    assert result.ci95 == pytest.approx((0.4 - 1.96 * (0.44 / 10) ** 0.5, 0.4 + 1.96 * (0.44 / 10) ** 0.5), abs=0.1)
    assert paired(student, base).gain == pytest.approx(-0.4)
    assert paired(base, base) == Paired(0.0, (0.0, 0.0), 1.0, "exact McNemar")


def test_pairs_go_by_id_not_by_line(tmp_path: Path) -> None:
    base = eval_file(tmp_path / "a.jsonl", {"x": 0, "y": 1, "z": 1})
    student = eval_file(tmp_path / "b.jsonl", {"z": 1, "x": 1, "y": 1})
    assert paired(base, student).gain == pytest.approx(1 / 3)
    assert paired(base, student).p_value == 1.0


def test_sign_flip_equals_full_enumeration() -> None:
    differences = np.array([0.5, -0.2, 0.7, 0.1, 0.4, -0.1, 0.3, 0.6])
    sums = [abs(sum(d if bits >> i & 1 else -d for i, d in enumerate(differences))) for bits in range(2**8)]
    exact = sum(value >= abs(differences.sum()) - 1e-9 for value in sums) / 2**8
    assert sign_flip(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip(np.zeros(5)) == 1.0


def test_sign_flip_is_calibrated() -> None:
    # Under no difference p-values below 0.1 must come up about one time in ten.
    rng = np.random.default_rng(1)
    small = sum(sign_flip(rng.normal(size=12)) < 0.1 for _ in range(100))
    assert 3 <= small <= 19


def test_graded_pairs_use_the_permutation_test(tmp_path: Path) -> None:
    rng = random.Random(0)
    base = [rng.random() * 0.5 for _ in range(60)]
    student = [value + 0.1 * rng.random() for value in base]
    result = paired(eval_file(tmp_path / "a.jsonl", base), eval_file(tmp_path / "b.jsonl", student))
    assert result.test == "sign-flip permutation"
    assert result.ci95[0] < result.gain < result.ci95[1]
    assert result.ci95[0] > 0
    assert result.p_value == pytest.approx(1 / 10_001)


def test_different_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"different prompts \(1 stand in one only, first: y\)"):
        paired(eval_file(tmp_path / "a.jsonl", {"x": 1, "y": 1}), eval_file(tmp_path / "b.jsonl", {"x": 1}))
    with pytest.raises(UserError, match="nothing to compare"):
        paired(eval_file(tmp_path / "a.jsonl", []), eval_file(tmp_path / "b.jsonl", []))


def test_retention_interval(tmp_path: Path) -> None:
    teacher = eval_file(tmp_path / "t.jsonl", [1] * 90 + [0] * 10)
    student = eval_file(tmp_path / "s.jsonl", [1] * 81 + [0] * 19)
    interval = retention_interval(teacher, student)
    assert interval is not None
    # Paired: only the 9 items lost of 90 vary, so the ratio is a proportion of about 0.9 with n = 90.
    assert interval == pytest.approx((0.9 - 1.96 * (0.09 / 90) ** 0.5, 0.9 + 1.96 * (0.09 / 90) ** 0.5), abs=0.012)
    assert retention_interval(eval_file(tmp_path / "z.jsonl", [0] * 100), student) is None


def test_summary_arithmetic_and_shape() -> None:
    gain = Paired(0.3, (0.1, 0.5), 0.02, "exact McNemar")
    summary = summarize(
        "system1",
        10,
        scores={"teacher": score(10), "base": score(6), "student": score(9)},
        speeds={"teacher": speed(0.4, 2.0), "student": speed(0.1, 0.8, 1.99)},
        gain=gain,
    )
    assert summary["retention"] == 0.9
    assert summary["speedup_batched"] == pytest.approx(4.0)
    assert summary["speedup_single"] == summary["speedup"] == pytest.approx(2.5)
    assert summary["kpis"] == {"retention >= 0.9": True, "speedup >= 3": False, "p95 < 2 s per 128 tokens": True}
    assert (summary["gain"], summary["p_value"]) == (0.3, 0.02)
    assert list(summary["models"]) == ["teacher", "base", "student"]
    assert set(summary["models"]["base"]) == {
        *("truncated", "unparseable", "missing", "timeouts"),
        *("score", "ci95", "cut_share", "tokens_per_s", "tokens_per_s_single", "latency_p50_s", "latency_p95_s"),
        *("seconds_per_answer", "seconds_per_answer_single", "engine", "device", "dtype", "timed_prompts"),
        *("timed_max_tokens", "num_latencies", "latency_tokens", "mean_tokens", "num_parameters", "peak_memory_bytes"),
    }
    assert summary["models"]["base"]["tokens_per_s"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_a_teacher_that_knows_nothing() -> None:
    summary = summarize("system1", 10, scores={"teacher": score(0), "student": score(4)})
    assert (summary["retention"], summary["speedup"], summary["gain"]) == (None, None, None)
    assert summary["kpis"] == {"retention >= 0.9": False}


def test_missing_model_has_its_exact_line_and_the_others_answer(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = str(random_model())
    gone = str(tmp_path / "gone")
    models = {"Teacher": path, "System 1": gone, "System 2": None, "Again": path, "Hub": "nobody/nothing-of-this-name"}
    comparisons = compare_models(["How many?", "Which one?"], models, max_new_tokens=4)
    assert [comparison.prompt for comparison in comparisons] == ["How many?", "Which one?"]
    assert comparisons[0].missing == {"System 1": gone, "Hub": "nobody/nothing-of-this-name"}
    for comparison in comparisons:
        assert list(comparison.answers) == ["Teacher", "Again"]
        assert comparison.answers["Teacher"] == comparison.answers["Again"]
        assert comparison.answers["Teacher"].num_tokens <= 4
    lines = render_comparison(comparisons).splitlines()
    assert lines[:2] == [f"Model not found at {gone}", "Model not found at nobody/nothing-of-this-name"]


def test_a_model_that_is_there_but_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        compare_models(["x"], {"Student": str(tmp_path)})


def test_rendered_comparison_is_unambiguous() -> None:
    answers = {
        "Teacher": Completion("0", 0, "word " * 100, None, "stop", 100),
        "System 1": Completion("0", 0, "=" * 100 + "\nTeacher:\n\x1b[2J\u202eok [/foo]", None, "stop", 9),
        "System 2": Completion("0", 0, "", "hm, let me", "length", 128),
    }
    text = render_comparison([Comparison("Why?", answers)], max_chars={"Teacher": 20})
    lines = text.splitlines()
    assert lines[:3] == ["=" * 100, "Prompt 1 of 1", "  Why?"]
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "Teacher:",
        "System 1:",
        "System 2:",
    ]
    assert "  word word word word [... 479 more characters]" in lines
    assert lines.count("=" * 100) == 2
    assert "  [2Jok [/foo]" in lines
    assert "  [thinking only] hm, let me [cut at 128 tokens]" in lines
    assert max(map(len, lines)) <= 100
