"""Advice follows from the figures of a run: where a goal is missed, the loss turned, or the student fell below its base."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.goals import Figure, judge
from distill_lab.evaluation.summary import SPEEDUP_KPI, STEPS_KPI, latency_kpi, summarize
from distill_lab.evaluation.summary_file import ModelSummary, Summary
from distill_lab.evaluation.verdict import RETENTION_KPI, advice
from distill_lab.files.jsonl import write_jsonl
from distill_lab.grading.graders import metric_of
from distill_lab.report.advice import advice_lines, validation_losses


def summary(
    teacher: float, base: float, student: float, *, interval: tuple[float, float], recipe: str = "system1"
) -> Summary:
    scores = {
        name: Score(100, value, (value - 0.05, value + 0.05), 20.0, 0, 0, 0)
        for name, value in (("teacher", teacher), ("base", base), ("student", student))
    }
    return summarize(recipe, 100, scores=scores, metric=metric_of("exact"), retention_ci95=interval)


def log(path: Path, *losses: tuple[int, float]) -> Path:
    rows = [{"step": step, "epoch": step / 10, "validation_loss": loss, "seconds": 1.0} for step, loss in losses]
    write_jsonl(path, [{"step": 1, "epoch": 0.1, "loss": 2.0, "seconds": 0.5}, *rows])
    return path


def test_nothing_is_said_if_nothing_is_wrong(tmp_path: Path) -> None:
    assert advice_lines(summary(0.9, 0.3, 0.89, interval=(0.95, 1.0))) == []
    assert advice_lines(summary(0.9, 0.3, 0.85, interval=(0.85, 1.0))) == [], "the goal is open"
    assert advice_lines(summary(0.9, 0.3, 0.89, interval=(0.95, 1.0)), tmp_path / "none.jsonl") == []


def test_a_missed_retention_says_how_much_of_the_gap_is_closed(tmp_path: Path) -> None:
    missed = summary(0.9, 0.3, 0.6, interval=(0.6, 0.72))
    assert missed.kpis[RETENTION_KPI].status == "missed"
    (line,) = advice_lines(missed)
    assert "Training closed 50% of the gap" in line
    assert "more training rows or a larger student" in line
    (line,) = advice_lines(missed, log(tmp_path / "log.jsonl", (0, 2.0), (10, 1.5), (20, 1.2)))
    assert "more epochs, because the validation loss was still falling" in line
    (line,) = advice_lines(summary(0.9, 0.3, 0.6, interval=(0.6, 0.72), recipe="system2"))
    assert "--rv-min" in line


def test_a_student_below_its_base_gets_one_sentence_on_that(tmp_path: Path) -> None:
    lines = advice_lines(summary(0.9, 0.5, 0.3, interval=(0.2, 0.4)))
    assert len(lines) == 1
    assert "the score fell below the base student's" in lines[0]


def test_a_loss_that_turned_names_the_best_epoch(tmp_path: Path) -> None:
    path = log(tmp_path / "log.jsonl", (0, 2.0), (10, 1.0), (20, 1.1), (30, 1.4))
    (line,) = advice_lines(summary(0.9, 0.3, 0.89, interval=(0.95, 1.0)), path)
    assert "lowest after 1 epochs (1.000 nats per token) and then rose to 1.400" in line
    assert "--train.num-epochs 1," in line
    for losses in (((0, 2.0), (30, 1.0)), ((0, 2.0), (10, 1.0), (20, 1.005)), ((0, 1.0), (10, 1.2), (20, 1.3))):
        turned = [
            line
            for line in advice_lines(summary(0.9, 0.3, 0.89, interval=(0.95, 1.0)), log(path, *losses))
            if "lowest" in line
        ]
        assert turned == [], losses


def test_a_loss_that_turned_and_ended_above_its_start_is_said_once(tmp_path: Path) -> None:
    rose = dataclasses.replace(
        summary(0.9, 0.3, 0.89, interval=(0.95, 1.0)), advice=tuple(advice(worse=False, losses=(1.0, 1.2)))
    )
    (line,) = advice_lines(rose, log(tmp_path / "log.jsonl", (0, 1.0), (10, 0.8), (20, 1.2)))
    assert "lowest after 1 epochs (0.800" in line
    (line,) = advice_lines(rose)
    assert "rose from 1.000 to 1.200" in line


def test_a_damaged_log_has_no_losses(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("not json\n")
    assert validation_losses(path) == []
    assert [each.loss for each in validation_losses(log(path, (0, 2.0), (5, 1.0)))] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(20.0, "try a smaller student (the teacher has 7.6× its parameters)"), (60.0, "3.0× as many tokens")],
)
def test_a_missed_speedup_says_what_takes_the_time(tokens: float, said: str) -> None:
    found = summary(0.9, 0.3, 0.89, interval=(0.95, 1.0))
    models = {
        "teacher": ModelSummary(mean_tokens=20.0, num_parameters=7_600_000),
        "student": ModelSummary(mean_tokens=tokens, num_parameters=1_000_000),
    }
    kpi = judge(Figure(1.8, (1.7, 1.9)), 3.0, unit="ratio", n=5, counted="rounds of timing")
    found = dataclasses.replace(found, models=models, speedup=1.8, kpis={SPEEDUP_KPI: kpi})
    (line,) = advice_lines(found)
    assert said in line


def test_missed_steps_and_latency() -> None:
    found = summary(0.9, 0.3, 0.89, interval=(0.95, 1.0))
    models = {"student": ModelSummary(several_steps=0.5, cut_share=0.25, latency_p95_s=5.5, latency_tokens=128)}
    kpis = {
        STEPS_KPI: judge(Figure(0.5, (0.4, 0.6)), 0.8, unit="share", n=100, counted="test prompts"),
        latency_kpi(128): judge(Figure(5.5, (5.0, 6.0)), 2.0, unit="seconds", n=20, counted="x", at_least=False),
    }
    steps, latency = advice_lines(dataclasses.replace(found, models=models, kpis=kpis))
    assert "50% of the answers reason in several steps; 25% were cut" in steps
    assert "take up to 5.50 s, the goal is 2 s" in latency
