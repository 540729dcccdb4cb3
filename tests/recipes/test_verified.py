"""The verified recipe: its whole line, token budgets on the same answers, iterations that end, the control, real rows."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pytest

from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.evaluation.token_stats import render_models
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.recipes import verified

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=64, thinking=False)
TWICE = SHORT.model_copy(update={"temperature": 1.0, "num_samples": 2})


def tiny(**changes: Any) -> verified.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:problems", split="distill[:20]"),
        "test": DataConfig(path="tiny:problems", split="test[:5]"),
        "sampling": TWICE,
        "test_sampling": SHORT,
        "train": TrainConfig(learning_rate=1e-3, tokens_per_batch=1024, save_steps=0.5, validation_fraction=0),
        "measure": False,
    }
    return verified.PRESETS["tiny"].model_copy(update=settings | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run and its summary."""
    run = tmp_path_factory.mktemp("verified") / "run"
    return run, verified.run(tiny(), run)


def table(path: Path) -> Any:
    return pd.read_parquet(path)


def stages(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["stages"]


def test_the_whole_line(whole: tuple[Path, Any]) -> None:
    run, summary = whole
    assert read_summary(run / "summary.json") == summary
    counts = stages(run)["prompts"]["counts"]
    assert counts["rows_in"] == 20
    assert len(list(read_jsonl(run / "graded.jsonl"))) == 2 * counts["kept"]
    correct, train, val = (table(run / f"{name}.parquet") for name in ("correct", "train", "val"))
    assert len(train) + len(val) == len(correct)
    assert not set(train["question"]) & set(val["question"])
    assert {"num_tokens", "level", "type"} <= set(correct.columns)
    held_out = {row["messages"][-1]["content"] for row in read_jsonl(run / "validation.jsonl")}
    assert len(held_out) == counts["kept"] // 10
    assert set(val["question"]) <= held_out
    for name, stage in stages(run).items():
        if stage["counts"]:
            counts = stage["counts"]
            assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values()), name

    assert summary.n == 5
    assert set(summary.models) == {"teacher", "base", "student"}
    assert summary.token_ratio == summary.models["student"].mean_tokens / summary.models["base"].mean_tokens
    assert set(summary.best_of_k.pass_at) == {1, 2}
    assert 0.6 <= summary.best_of_k.pass_at[1] <= summary.best_of_k.pass_at[2] <= 1
    assert summary.tokens["all"][""].num == len(correct)
    assert summary.tokens["level"]["1"].mean == correct[correct["level"] == "1"]["num_tokens"].mean()
    items = [row["num_tokens"] for row in read_jsonl(run / "eval" / "student.jsonl")]
    assert summary.models["student"].median_tokens == median(items)


def test_the_report_and_the_table_show_tokens(whole: tuple[Path, Any]) -> None:
    run, summary = whole
    page = (run / "report.html").read_text()
    assert "<h2>Tokens</h2>" in page
    assert "Correct solutions by level" in page
    assert page.count("Tokens per answer</text>") == 1
    table = render_models(summary).splitlines()
    assert table[0].split() == ["Model", "Accuracy", "Correct", "Total", "Avg", "tokens", "Median", "tokens"]
    teacher = summary.models["teacher"]
    assert table[1].split()[:4] == ["Teacher", f"{teacher.score:.1%}", str(teacher.correct), "5"]
    assert any(line.startswith("numeric answer gain over the base student") for line in table)


def test_a_budget_selects_anew_from_the_same_answers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    verified.run(tiny(), run)
    answers, correct = (run / "completions.jsonl").stat().st_mtime_ns, table(run / "correct.parquet")
    verified.run(tiny(budget=0.5, keep="shortest"), run)
    assert (run / "completions.jsonl").stat().st_mtime_ns == answers
    selected = table(run / "selected.parquet")
    assert selected["num_tokens"].max() <= correct["num_tokens"].median()
    assert selected["id"].is_unique
    shortest = correct.groupby("id")["num_tokens"].min()
    assert selected.set_index("id")["num_tokens"].to_dict() == shortest[selected["id"]].to_dict()


def test_iterations_make_the_student_the_teacher_and_end_by_themselves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Hardly trained at all: the second student cannot be better than the first.
    train = TrainConfig(max_steps=1, learning_rate=1e-9, tokens_per_batch=1024, validation_fraction=0)
    summary: Any = verified.run(tiny(iterations=3, train=train, out=str(tmp_path / "copy")), run)
    assert [row.iteration for row in summary.iterations] == [1, 2]
    assert summary.iterations[1].teacher == summary.iterations[0].student == str(run / "student")
    assert summary.iterations[1].validation_score <= summary.iterations[0].validation_score
    assert summary.student == str(run / "student")
    assert (run / "iteration-2" / "correct.parquet").exists()
    assert not (run / "iteration-3").exists()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (run / "student/model.safetensors").read_bytes()
    assert "<h2>Iterations</h2>" in (run / "report.html").read_text()


def test_iterations_need_validation_questions(tmp_path: Path) -> None:
    few = tiny(iterations=2, data=DataConfig(path="tiny:problems", split="distill[:5]"))
    with pytest.raises(NoData, match="at least 10"):
        verified.run(few, tmp_path / "run")


def test_answers_to_wrong_questions_teach_nothing(tmp_path: Path) -> None:
    summary: Any = verified.run(
        tiny(
            shuffle_answers=True,
            test=DataConfig(path="tiny:problems", split="test[:30]"),
            sampling=TWICE.model_copy(update={"num_samples": 1}),
            data=DataConfig(path="tiny:problems", split="distill[:40]"),
            train=TrainConfig(num_epochs=4, learning_rate=4e-3, tokens_per_batch=512, validation_fraction=0),
        ),
        tmp_path / "run",
    )
    base, student = (summary.models[name].score for name in ("base", "student"))
    assert base >= 0.1
    assert student < base
    for row in table(tmp_path / "run" / "shuffled.parquet").to_dict("records"):
        assert row["completion"][0]["content"].strip()


def test_only_questions_that_the_student_solves_sometimes_are_trained_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    band: dict[str, Any] = {"min_pass_rate": 0.25, "max_pass_rate": 0.75, "pass_rate_samples": 4}
    band |= {"data": DataConfig(path="tiny:problems", split="distill[:12]")}
    verified.run(tiny(choose_prompts="pass_rate", **band), run)
    found = stages(run)
    counts = found["prompts in the pass-rate band"]["counts"]
    rates: dict[str, list[float]] = {}
    for row in read_jsonl(run / "pass_rate" / "graded.jsonl"):
        rates.setdefault(row["id"], []).append(row["grade"]["score"])
    assert all(len(scores) == 4 for scores in rates.values())
    asked = {row["id"] for row in read_jsonl(run / "graded.jsonl")}
    assert asked == {id for id, scores in rates.items() if 0.25 <= sum(scores) / 4 <= 0.75}
    assert counts["kept"] == len(asked) == counts["rows_in"] - sum(counts["dropped"].values())
    assert set(counts["dropped"]) <= {"too easy", "too hard"}
    # The control: as many, of all of them.
    verified.run(tiny(choose_prompts="random", **band), run)
    drawn = {row["id"] for row in read_jsonl(run / "graded.jsonl")}
    assert len(drawn) == len(asked)
    assert drawn <= set(rates)
    assert stages(run)["the student's samples"] == found["the student's samples"]
    band |= {"min_pass_rate": 0.4, "max_pass_rate": 0.4}
    with pytest.raises(NoData, match=r"solves no prompt in 40% to 40% of its samples"):
        verified.run(tiny(choose_prompts="pass_rate", **band), run)
    with pytest.raises(ValueError, match=r"min_pass_rate 0\.9 is above max_pass_rate 0\.8"):
        verified.Config(min_pass_rate=0.9)


def test_no_data_and_nothing_correct_are_said(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"^No data for verified distillation$"):
        verified.run(tiny(data=DataConfig(path="tiny:problems", split="distill[:0]")), tmp_path / "none")
    write_jsonl(tmp_path / "bare.jsonl", [{"question": f"What is {n} + 1?"} for n in range(12)])
    bare = DataConfig(path=str(tmp_path / "bare.jsonl"))
    with pytest.raises(UserError, match="have no gold answer"):
        verified.run(tiny(data=bare, test=DataConfig(path="")), tmp_path / "bare")
    with pytest.raises(NoData, match=r"no correct solution to learn from .*20 in, 0 kept") as caught:
        verified.run(
            tiny(
                teacher=ModelConfig(model="tiny:student"),
                data=DataConfig(path="tiny:labels", split="distill[:10]"),
                sampling=TWICE.model_copy(update={"max_new_tokens": 1}),
                grader="exact",
            ),
            tmp_path / "wrong",
        )
    assert "graded.jsonl" in str(caught.value)
    assert not (tmp_path / "wrong" / "student").exists()


@pytest.mark.parametrize("file", ["mawps_singleop.jsonl", "gsm8k_train.jsonl"])
def test_real_questions_train_on_what_is_right_or_say_that_nothing_is(
    shared_data: Path, tmp_path: Path, file: str
) -> None:
    run, refused = tmp_path / "run", None
    try:
        verified.run(
            tiny(data=DataConfig(path=str(shared_data / "math" / file), split="train[:20]"), test=DataConfig(path="")),
            run,
        )
    except NoData as error:
        refused = str(error)
    graded = list(read_jsonl(run / "graded.jsonl"))
    assert len(graded) == 36  # two of twenty are the test
    held_out = {row["id"] for row in read_jsonl(run / "validation.jsonl")}
    right = [row for row in graded if row["grade"]["score"] == 1 and row["id"] not in held_out]
    if right:
        assert refused is None
        assert 1 <= len(table(run / "train.parquet")) <= len(right)
        assert (run / "student" / "model.safetensors").is_file()
    else:
        assert refused is not None
        assert "correct solution" in refused
        assert not (run / "student").exists()
