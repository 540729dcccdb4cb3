"""The summary: arithmetic, intervals, goals, what is missing and why, and summary.json written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.intervals import proportion
from distill_lab.evaluation.speedups import Speed
from distill_lab.evaluation.statistics import Paired
from distill_lab.evaluation.steps import Steps
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import VERSION, Summary, read_summary, write_summary
from distill_lab.grading.graders import metric_of


def speed(seconds: float, single: float, *, tokens: float = 100.0, noise: float = 0.01, rounds: int = 5) -> Speed:
    """A model whose rounds, prompts and latency answers differ by `noise`."""
    steps = [1 + noise * (place - rounds // 2) for place in range(rounds)]
    return Speed(
        tokens_per_s=tokens / seconds,
        tokens_per_s_single=tokens / single,
        seconds_per_answer=seconds,
        seconds_per_answer_single=single,
        latency_p50_s=0.5,
        latency_p95_s=0.52,
        mean_tokens=tokens,
        num_parameters=1000,
        peak_memory_bytes=None,
        in_turns_with=("teacher", "student"),
        rounds=tuple((seconds * step, tokens) for step in steps),
        answer_tokens=(int(tokens),) * 8,
        answers_single=tuple((single * step, tokens) for step in reversed(steps)),
        latencies_s=tuple(0.5 + 0.001 * place for place in range(20)),
    )


def score(successes: int, n: int = 10) -> Score:
    return Score(n, successes / n, proportion(successes, n), 20.0, 0, 0, 0, correct=successes)


def whole(**more: Any) -> Summary:
    teacher, student = speed(0.4, 2.0), replace(speed(0.1, 0.8), rounds=speed(0.1, 0.8).rounds[::-1])
    settings: dict[str, Any] = {
        "scores": {"teacher": score(10), "base": score(6), "student": score(9)},
        "speeds": {"teacher": teacher, "student": student},
        "gain": Paired(0.3, (0.1, 0.5), 0.02, "exact McNemar"),
        "retention_ci95": (0.7, 1.05),
        "metric": metric_of("exact"),
        "steps": {"student": Steps(0.5, 10, (0.2, 0.7))},
        "outcomes": {"both right": 9},
    }
    return summarize("system1", 10, **(settings | more))


def test_arithmetic_and_goals() -> None:
    summary = whole()
    assert summary.retention == 0.9
    assert summary.retention_ci95 == (0.7, 1.05)
    assert summary.goal_score == 0.9
    assert summary.speedup_batched == pytest.approx(4.0)
    assert summary.speedup_single == summary.speedup == pytest.approx(2.5)
    assert summary.speedup_per_token_single == pytest.approx(2.5)
    assert summary.speedup_ci95 == summary.speedup_single_ci95
    assert {name: kpi.status for name, kpi in summary.kpis.items()} == {
        "retention >= 0.9": "open",
        "speedup >= 3": "missed",
        "p95 < 2 s per 128 tokens": "met",
        ">= 0.8 reason in several steps": "missed",
    }
    assert (summary.gain, summary.gain_ci95, summary.p_value) == (0.3, (0.1, 0.5), 0.02)
    assert list(summary.models) == ["teacher", "base", "student"]
    assert summary.models["base"].tokens_per_s is None
    assert summary.models["student"].several_steps_ci95 == (0.2, 0.7)
    assert summary.no_interval == {}


def test_summary_json_is_complete_and_comes_back(tmp_path: Path) -> None:
    summary = whole()
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    assert read_summary(path) == summary
    row = json.loads(path.read_text())
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["version"] == VERSION
    figures = [name for name in row if f"{name}_ci95" in row]
    per_way = [f"speedup_{per}{way}" for per in ("", "per_token_") for way in ("batched", "single")]
    assert set(figures) == {"retention", "gain", "speedup", *per_way}
    assert all(len(row[f"{name}_ci95"]) == 2 for name in figures)
    kpi = row["kpis"]["retention >= 0.9"]
    assert (kpi["status"], kpi["goal"], kpi["value"], kpi["ci95"], kpi["n"]) == ("open", 0.9, 0.9, [0.7, 1.05], 10)
    assert (tmp_path / "none.json").exists() is False
    with pytest.raises(UserError, match=r"none\.json is missing"):
        read_summary(tmp_path / "none.json")


def test_every_part_of_a_recipe_comes_back_as_summaries_before_wrote_it(tmp_path: Path) -> None:
    tokens = {"num": 2, "mean": 3.5, "median": 3.5, "shortest": 3, "longest": 4}
    paid = {
        "requests": 2,
        "input_tokens": 9,
        "cached_tokens": 0,
        "output_tokens": 4,
        "batched": 0,
        "estimated": 1,
        "cost": 0.5,
    }
    cost = {"prompt_tokens": 9.0, "completion_tokens": 2.0, "seconds": None, "tokens": 11.0}
    rate = {"rate": 0.5, "ci95": [0.4, 0.6], "tokens_per_pass": [1.5, 1.75], "num_answers": 4, "num_tokens": 40}
    error = {"text": "t", "gold": "a", "predicted": "?"}
    parts = {
        "test_overlap": {"rows_in": 5, "kept": 4, "dropped": {"same prompt": 1}},
        "spending": {"stages": {"teacher answers": paid}, "total": paid},
        "generated": {"teacher answers": {"answers": 2, "tokens": 7}},
        "cost": {"teacher": cost, "student": cost, "ratio": {"accuracy": None, "tokens": 1.0, "seconds": None}},
        "labels": {
            "student": {
                "parse_rate": 0.5,
                "per_label": {"a": 0.5},
                "totals": {"a": 2},
                "matrix": {"rows": ["a"], "columns": ["a", "?"], "array": [[1, 1]]},
                "worst": [{"label": "a", "correct": 1, "total": 2, "errors": [error]}],
            }
        },
        "tokens": {"all": {"": tokens}, "level": {"1": tokens}, "type": {}},
        "token_histogram": {"width": 2, "shares": {"student": [0.25, 0.75]}},
        "best_of_k": {"num_questions": 3, "num_samples": 2, "pass_at": {"1": 0.5, "2": 0.75}, "majority": 0.5},
        "iterations": [
            {
                "iteration": 1,
                "teacher": "tiny:teacher",
                "student": "runs/v/student",
                "num_rows": 4,
                "mean_row_tokens": 3.5,
                "validation_score": None,
                "validation_tokens": None,
            }
        ],
        "draft": {
            "target": "tiny:teacher",
            "answers": {"greedy": {"rows_in": 4, "kept": 4, "dropped": {}}},
            "drafts": {
                "draft": {
                    "model": "runs/d/student",
                    "acceptance": {"sampled": rate, "greedy": rate},
                    "num_drafted": 3,
                    "expected_speedup": 1.5,
                    "speedup": {"value": 1.25, "ci95": None, "why": "one round"},
                    "same_answers": 4,
                }
            },
            "gain_sampled": [0.1, [0.05, 0.15]],
            "gain_greedy": [0.1, None],
            "num_timed": 4,
            "target_tokens_per_s": 20.0,
            "no_time": "",
        },
    }
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(whole().to_json() | parts))
    found = read_summary(path)
    assert found.draft is not None
    assert found.draft.sentence().startswith("The target accepts 50.0% of")
    assert found.best_of_k is not None
    assert found.best_of_k.pass_at[2] == 0.75
    row = json.loads(json.dumps(found.to_json()))
    assert {name: row[name] for name in parts} == parts
    write_summary(path, found)
    assert read_summary(path) == found


def test_a_teacher_that_knows_nothing_leaves_nothing_to_retain() -> None:
    summary = summarize("system1", 10, scores={"teacher": score(0), "student": score(4)})
    assert (summary.retention, summary.speedup, summary.gain, summary.goal_score) == (None, None, None, None)
    kpi = summary.kpis["retention >= 0.9"]
    assert (kpi.status, kpi.value, kpi.why) == ("missed", None, "the teacher scores 0")


def test_what_has_no_interval_says_why() -> None:
    one = {name: replace(each, rounds=each.rounds[:1]) for name, each in _speeds().items()}
    summary = whole(retention_ci95=None, speeds=one)
    assert summary.no_interval == {
        "retention": "no interval was computed",
        "speedup": "a single round was timed",
        "speedup_batched": "a single round was timed",
    }
    kpi = summary.kpis["speedup >= 3"]
    assert (kpi.status, kpi.to_settle, kpi.why) == ("missed", None, "")


def _speeds(**student: Any) -> dict[str, Speed]:
    return {
        "teacher": speed(0.4, 2.0),
        "student": speed(**cast("dict[str, Any]", {"seconds": 0.1, "single": 0.8} | student)),
    }


def test_an_open_speedup_names_what_would_settle_it() -> None:
    slow = speed(0.1, 0.6)
    noisy = replace(slow, rounds=tuple((0.1 * more, 100.0) for more in (0.7, 0.8, 1.0, 1.3, 1.4)))
    kpi = whole(speeds={"teacher": speed(0.4, 2.4), "student": noisy}).kpis["speedup >= 3"]
    assert (kpi.status, kpi.counted, kpi.n) == ("open", "rounds of timing", 5)
    assert kpi.to_settle is not None
    assert kpi.to_settle > 5
    noisy = replace(slow, answers_single=tuple((0.6 * more, 100.0) for more in (0.5, 0.8, 1.0, 1.2, 1.5)))
    kpi = whole(speeds={"teacher": speed(0.4, 2.1), "student": noisy}).kpis["speedup >= 3"]
    assert (kpi.status, kpi.counted, kpi.n) == ("open", "prompts timed alone", 5)


def test_a_speedup_from_shorter_answers_is_noted() -> None:
    terse = {"teacher": speed(0.4, 2.0, tokens=100), "student": speed(0.1, 0.5, tokens=40)}
    summary = whole(speeds=terse)
    assert summary.speedup == pytest.approx(4.0)
    assert summary.speedup_per_token_batched == pytest.approx(1.6)
    assert [note for note in summary.notes if note.startswith("Per token the student is 1.6× as fast")]
    assert not [note for note in whole().notes if note.startswith("Per token")]
    equal = {"teacher": speed(0.4, 2.0), "student": speed(0.1, 0.5)}
    assert not [note for note in whole(speeds=equal).notes if note.startswith("Per token")]
