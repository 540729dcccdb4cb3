"""Paired tests against scipy and by hand, pairs of other prompts or gold answers refused, gain and retention."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from distill_lab.errors import UserError
from distill_lab.evaluation.intervals import bounded_mean, proportion
from distill_lab.evaluation.statistics import (
    mcnemar,
    outcomes,
    paired,
    retention_interval,
    score_interval,
    sign_flip,
)
from distill_lab.files.jsonl import write_jsonl
from tests.helpers import eval_row


def eval_file(path: Path, scores: Mapping[str, float] | Sequence[float]) -> Path:
    named = scores if isinstance(scores, Mapping) else {str(i): score for i, score in enumerate(scores)}
    write_jsonl(path, [eval_row(name, score) for name, score in named.items()])
    return path


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
    # Gaffke: the weights of won, lost and equal pairs are Dirichlet(5, 1, 4), with one more lost or won pair for an end.
    weights = np.random.default_rng(4)
    lower, upper = weights.dirichlet([5, 1 + 1, 4], 200_000), weights.dirichlet([5 + 1, 1, 4], 200_000)
    ends = np.quantile(lower[:, 0] - lower[:, 1], 0.025), np.quantile(upper[:, 0] - upper[:, 1], 0.975)
    assert result.ci95 == pytest.approx(ends, abs=0.01)
    assert paired(student, base).gain == pytest.approx(-0.4)
    same = paired(base, base)
    assert (same.gain, same.p_value, same.test) == (0.0, 1.0, "exact McNemar")
    # Ten pairs without a difference: the gain may still be up to 1 - 0.025 ** (1 / 10) either way, as in Clopper-Pearson.
    assert same.ci95 == pytest.approx((-0.308, 0.308), abs=0.01)


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


@pytest.mark.parametrize(("number", "is_clear"), [(60, False), (200, True)])
def test_graded_pairs_use_the_permutation_test(tmp_path: Path, number: int, is_clear: bool) -> None:
    rng = random.Random(0)
    base = [rng.random() * 0.5 for _ in range(number)]
    student = [value + 0.1 * rng.random() for value in base]
    result = paired(eval_file(tmp_path / "a.jsonl", base), eval_file(tmp_path / "b.jsonl", student))
    assert result.test == "sign-flip permutation"
    # The signs of 60 pairs already say that the student is better. The interval assumes nothing about pairs that were not
    # seen: one in 60 could be a fall from 1 to 0, which moves the mean by as much as is gained.
    assert result.p_value == pytest.approx(1 / 10_001)
    assert (result.ci95[0] > 0) == is_clear
    assert 0.05 - 4 / number < result.ci95[0] < result.gain < result.ci95[1] < 0.05 + 4 / number


def test_different_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"different prompts \(1 are in only one, first: y\)"):
        paired(eval_file(tmp_path / "a.jsonl", {"x": 1, "y": 1}), eval_file(tmp_path / "b.jsonl", {"x": 1}))
    with pytest.raises(UserError, match="nothing to compare"):
        paired(eval_file(tmp_path / "a.jsonl", []), eval_file(tmp_path / "b.jsonl", []))


def test_retention_interval(tmp_path: Path) -> None:
    teacher = eval_file(tmp_path / "t.jsonl", [1] * 90 + [0] * 10)
    student = eval_file(tmp_path / "s.jsonl", [1] * 81 + [0] * 19)
    interval = retention_interval(teacher, student)
    assert interval is not None
    # Paired: only the 9 items lost of 90 vary, so the ratio is a proportion of about 0.9 with n = 90.
    assert interval[0] == pytest.approx(0.9 - 1.96 * (0.09 / 90) ** 0.5, abs=0.02)
    assert interval[1] == pytest.approx(0.9 + 1.96 * (0.09 / 90) ** 0.5, abs=0.02)
    assert retention_interval(eval_file(tmp_path / "z.jsonl", [0] * 100), student) is None


def message(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            {"prompt": [message("1 + 1")]},
            {"prompt": [message("1 + 2")]},
            r"different prompts \(1 differ under the same id, first: x",
        ),
        ({"answer": "2"}, {"answer": "3"}, r"different gold answers \(1 differ for the same prompt, first: x"),
        ({"answer": "2"}, {"answer": None}, "different gold answers"),
        (
            {"prompt": [message("Be brief.", "system"), message("q")]},
            {"prompt": [message("q")]},
            "different prompts",
        ),
        ({"prompt": [message("q")]}, {"prompt": [message("q", "assistant")]}, "different prompts"),
    ],
)
def test_the_same_id_must_be_the_same_prompt_and_gold_answer(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], said: str
) -> None:
    files = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for path, fields in zip(files, (old, new), strict=True):
        write_jsonl(path, [eval_row("x", **fields), eval_row("y")])
    for compare in (paired, retention_interval):
        with pytest.raises(UserError, match=said) as error:
            compare(*files)
        assert all(str(path) in str(error.value) for path in files)


def test_a_system_prompt_that_only_the_teacher_has_is_no_difference_if_so_said(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher.jsonl", tmp_path / "student.jsonl"
    write_jsonl(teacher, [eval_row("x", prompt=[message("Rules.", "system"), message("q")])])
    write_jsonl(student, [eval_row("x", prompt=[message("q")])])
    assert retention_interval(teacher, student, same_system=False) is not None
    write_jsonl(student, [eval_row("x", prompt=[message("another q")])])
    with pytest.raises(UserError, match="different prompts"):
        retention_interval(teacher, student, same_system=False)


def test_the_order_of_a_messages_fields_makes_no_difference(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    write_jsonl(old, [eval_row("x", 0.0, prompt=[{"role": "user", "content": "q"}])])
    write_jsonl(new, [eval_row("x", 1.0, prompt=[{"content": "q", "role": "user"}])])
    assert paired(old, new).gain == 1.0


def test_samples_of_one_id_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [eval_row("x", 1.0), eval_row("x", 0.0, sample=1)])
    assert paired(path, path).gain == 0.0
    write_jsonl(path, [eval_row("x"), eval_row("x", sample=1, answer="5")])
    with pytest.raises(UserError, match="the samples of x have different prompts or gold answers"):
        paired(path, path)


def test_a_score_has_the_interval_of_its_kind() -> None:
    assert score_interval([1.0, 0.0, 1.0, 1.0]) == proportion(3, 4)
    assert score_interval([0.5, 0.0, 1.0, 1.0]) == bounded_mean([0.5, 0.0, 1.0, 1.0])


def test_outcomes_count_the_first_sample_of_prompts_in_both_files(tmp_path: Path) -> None:
    teacher = eval_file(tmp_path / "t.jsonl", {"a": 0.5, "b": 1, "c": 0, "d": 0, "only here": 1})
    rows = [eval_row(name, score) for name, score in {"a": 1, "b": 0.4, "c": 0.5, "d": 0, "only there": 1}.items()]
    write_jsonl(tmp_path / "s.jsonl", [*rows, eval_row("d", 1.0, sample=1)])
    assert outcomes(teacher, tmp_path / "s.jsonl") == {
        "both right": 1,
        "only the teacher right": 1,
        "only the student right": 1,
        "neither right": 1,
    }


def test_a_prompts_score_is_the_mean_of_its_samples(tmp_path: Path) -> None:
    def sampled(name: str, scores: Mapping[str, Sequence[float]]) -> Path:
        rows = [eval_row(id, score, sample=number) for id in scores for number, score in enumerate(scores[id])]
        write_jsonl(tmp_path / name, rows)
        return tmp_path / name

    base = sampled("base.jsonl", {"a": [0, 0, 0, 1], "b": [0, 0]})
    student = sampled("student.jsonl", {"a": [1, 1, 0, 1], "b": [1, 0]})
    assert paired(base, student).gain == pytest.approx((0.5 + 0.5) / 2)
    assert paired(student, base).gain == pytest.approx(-0.5)


def test_a_gold_answer_that_cannot_be_read_counts_for_neither_model(tmp_path: Path) -> None:
    bad = {"score": 0.0, "answer": None, "status": "bad_gold"}
    rows = {"good": {}, "other": {}, "bad": {"grade": bad}}
    for name, scores in (("base", [0.0, 1.0, 0.0]), ("student", [1.0, 1.0, 0.0])):
        lines = [eval_row(id, score, **more) for (id, more), score in zip(rows.items(), scores, strict=True)]
        write_jsonl(tmp_path / f"{name}.jsonl", lines)
    assert paired(tmp_path / "base.jsonl", tmp_path / "student.jsonl").gain == 0.5
    # Known from one of the models: the other did not answer.
    write_jsonl(tmp_path / "student.jsonl", [eval_row("good", 1.0), eval_row("other", 1.0), eval_row("bad", 0.0)])
    assert paired(tmp_path / "base.jsonl", tmp_path / "student.jsonl").gain == 0.5
