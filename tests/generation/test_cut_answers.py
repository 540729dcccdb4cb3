"""Answers that the token limit cut: their share stands beside every score, and where it is large nothing is claimed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.evaluation.evaluate import cut_share, evaluate
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.verdict import CUT_OFTEN, RETENTION_KPI
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.cut_answers import CUT, TOO_LONG, cut_reason, cut_warning, dropped_warning
from distill_lab.grading.graders import metric_of
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.terminal import Terminal
from distill_lab.types import Completion, Counts, Prompt


def scored(folder: Path, name: str, *, right: int, cut: int, total: int = 20):
    prompts = [Prompt(str(n), [{"role": "user", "content": "?"}], answer="4") for n in range(total)]
    answers = [
        Completion(str(n), 0, "4" if n < right else "5", None, "length" if n >= total - cut else "stop", 3)
        for n in range(total)
    ]
    write_jsonl(folder / "prompts.jsonl", (each.to_json() for each in prompts))
    write_jsonl(folder / f"{name}.completions.jsonl", (each.to_json() for each in answers))
    assert cut_share(folder / f"{name}.completions.jsonl") == cut / total
    return evaluate(folder / "prompts.jsonl", folder / f"{name}.completions.jsonl", folder / f"{name}.jsonl", "exact")


def test_the_share_stands_beside_the_score(tmp_path: Path) -> None:
    score = scored(tmp_path, "teacher", right=16, cut=4)
    assert (score.truncated, score.cut_share, score.score) == (4, 0.2, 0.8)
    assert scored(tmp_path, "none", right=16, cut=0).cut_share == 0


@pytest.mark.parametrize(("teacher_cut", "student_cut", "reason"), [
    (2, 2, None), (3, 0, "teacher cut off in 15%"), (0, 4, "student cut off in 20%"),
    (9, 4, "teacher cut off in 45%, student cut off in 20%"),
])  # fmt: skip
def test_above_a_tenth_no_retention_is_claimed(
    tmp_path: Path, teacher_cut: int, student_cut: int, reason: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {
        "teacher": scored(tmp_path, "teacher", right=20, cut=teacher_cut),
        "base": scored(tmp_path, "base", right=5, cut=0),
        "student": scored(tmp_path, "student", right=20, cut=student_cut),
    }
    summary = summarize("system1", 20, scores=scores, metric=metric_of("exact"), retention_ci95=(0.9, 1.1))
    assert {name: model.cut_share for name, model in summary.models.items()} == {
        "teacher": teacher_cut / 20,
        "base": 0,
        "student": student_cut / 20,
    }
    assert summary.retention_reason == reason
    terminal = Terminal(ticking=False)
    terminal.summary(summary, tmp_path)
    terminal.close()
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{teacher_cut * 5}%" in shown
    if reason is None:
        assert summary.retention is not None
        assert summary.retention_ci95 == (0.9, 1.1)
        assert RETENTION_KPI in summary.kpis
        assert "not reported" not in shown
    else:
        assert summary.retention is summary.base_retention is summary.retention_ci95 is None
        assert RETENTION_KPI not in summary.kpis
        assert summary.verdict == CUT_OFTEN
        assert "keeps" not in summary.result
        assert f"not reported: {reason}" in shown


def test_warnings_name_the_share_and_a_remedy() -> None:
    assert cut_warning("the teacher", 0.1) == ""
    assert "43% of the answers were cut off" in cut_warning("the teacher", 0.43)
    assert cut_reason({}) is None
    assert dropped_warning(Counts(10, 9, {CUT: 1})) == ""
    assert "20% of the rows" in dropped_warning(Counts(10, 8, {CUT: 1, TOO_LONG: 1}))
    assert "train.max_length" not in dropped_warning(Counts(10, 8, {CUT: 2}))
    assert "max_new_tokens" not in dropped_warning(Counts(10, 8, {TOO_LONG: 2}))
    assert dropped_warning(Counts(10, 2, {"empty": 8})) == ""


@pytest.mark.slow
def test_a_run_warns_of_cut_answers_and_of_rows_left_out(random_model: Callable[..., Path], tmp_path: Path) -> None:
    notes: list[str] = []

    class Heard(ProgressReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    prompts = tmp_path / "prompts.jsonl"
    rows = [Prompt(str(n), [{"role": "user", "content": str(n)}], answer="4") for n in range(4)]
    write_jsonl(prompts, (row.to_json() for row in rows))
    model, sampling = ModelConfig(model=str(random_model(initializer_range=0.15))), SamplingConfig(max_new_tokens=3)
    done = [Completion(str(n), 0, "4", None, "length" if n else "stop", 3).to_json() for n in range(4)]
    write_jsonl(tmp_path / "answers.jsonl", done)
    with Run.open(tmp_path / "run", recipe="system1", config={}, watch=Heard()) as run:
        pipeline = Pipeline(run, engine=EngineConfig(engine="transformers"))
        pipeline.training_set(prompts, tmp_path / "answers.jsonl")
        models: dict[str, ModelConfig] = dict.fromkeys(("teacher", "base", "student"), model)
        setups = ask_alike(models, sampling)
        summary: Any = evaluate_models(pipeline, setups, prompts, grader="exact", measure_speed=False)
    assert [note for note in notes if note.startswith("warning: 75% of the rows")]
    share = summary.models["teacher"].cut_share
    assert share > 0.1
    assert sum(f"{share:.0%} of the answers were cut off" in note for note in notes) == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["retention_reason"]
    assert "not reported" in (tmp_path / "run" / "report.html").read_text()
