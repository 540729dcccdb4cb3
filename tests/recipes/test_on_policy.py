"""The on-policy recipe: its whole line, a prompt that only the teacher has, its forecast, what it refuses at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import read_jsonl
from distill_lab.planning.forecast import make_forecast
from distill_lab.planning.machine import Machine
from distill_lab.recipes import on_policy

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=24, thinking=False)
SAMPLED = SamplingConfig(max_new_tokens=24, temperature=1.0, thinking=False)


def tiny(**changes: Any) -> on_policy.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:instructions", split="distill[:40]"),
        "test": DataConfig(path="tiny:instructions", split="test[:6]"),
        "sampling": SAMPLED,
        "rollout": SAMPLED,
        "test_sampling": SHORT,
        "warm_up_epochs": 1,
        "steps_per_round": 2,
        "rollouts_per_step": 4,
        "train": TrainConfig(
            learning_rate=1e-3, tokens_per_batch=256, max_steps=4, max_length=256, validation_fraction=0.2
        ),
        "measure": False,
    }
    return on_policy.PRESETS["tiny"].model_copy(update=settings | changes)


def counts_add_up(run: Path) -> dict[str, Any]:
    stages = json.loads((run / "run.json").read_text())["stages"]
    for name, stage in stages.items():
        assert stage["status"] == "done", name
        if counts := stage["counts"]:
            assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values()), name
    return stages


def test_the_whole_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = on_policy.run(tiny(), run)
    assert summary == read_summary(run / "summary.json")
    assert (summary.recipe, summary.n) == ("on-policy", 6)
    assert set(summary.models) == {"teacher", "base", "student"}
    stages = counts_add_up(run)
    assert list(stages)[:8] == [
        "data", "test", "overlap with the test", "prompts", "teacher answers", "training set", "warm-up", "student"
    ]  # fmt: skip
    found = summary.on_policy
    assert found is not None
    assert (found.num_rounds, found.rollouts, found.held_out) == (2, 16, True)
    assert found.tokens_generated == sum(each.tokens for each in found.rounds) > 16
    for own in (found.before, found.after):
        assert own is not None
        assert own.texts >= 1
        assert own.divergence > 0
    warm_up = [row for row in read_jsonl(run / "warm-up" / "training_log.jsonl") if "loss" in row]
    assert warm_up
    assert all("metrics" not in row for row in warm_up)
    steps = [row for row in read_jsonl(run / "training_log.jsonl") if "loss" in row]
    assert all(row["loss"] == pytest.approx(row["metrics"]["kd"], rel=1e-5, abs=1e-6) for row in steps)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The student's own text" in page
    assert "In 2 rounds the student wrote 16 rollouts" in page
    assert not (run / "student.work").exists()
    # Again: nothing is done twice. With other rounds, the warm-up stays.
    on_policy.run(tiny(), run)
    assert counts_add_up(run) == stages
    on_policy.run(tiny(objective="jsd"), run)
    again = counts_add_up(run)
    assert again["warm-up"] == stages["warm-up"]
    assert again["student"]["key"] != stages["student"]["key"]


def test_adapters_learn_a_prompt_that_only_the_teacher_has(tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("Answer in English. " * 12, encoding="utf-8")
    config = tiny(
        teacher=ModelConfig(model="tiny:student"),
        teacher_prompt=str(rules),
        train=tiny().train.model_copy(update={"lora": LoraConfig(r=4)}),
    )
    summary = on_policy.run(config, tmp_path / "run")
    stages = counts_add_up(tmp_path / "run")
    assert "prompts for the teacher" in stages
    assert "test for the teacher" in stages
    for name in ("teacher_prompts.jsonl", "eval/for_teacher.jsonl"):
        for row in read_jsonl(tmp_path / "run" / name):
            assert row["messages"][0]["content"].startswith("Answer in English.")
    for row in read_jsonl(tmp_path / "run" / "train.jsonl"):
        assert row["prompt"][0]["role"] == "user"
    assert summary.on_policy is not None
    assert summary.on_policy.after is not None
    assert summary.on_policy.after.divergence > 0
    assert (tmp_path / "run" / "student" / "adapter_config.json").is_file()


def test_without_a_warm_up_the_teacher_writes_nothing(tmp_path: Path) -> None:
    config = tiny(warm_up_epochs=0, test=DataConfig(path=""), num_test=0, train=tiny().train.model_copy(
        update={"max_steps": -1, "num_epochs": 0.5}
    ))  # fmt: skip
    assert not config.relabel
    summary = on_policy.run(config, tmp_path / "run")
    assert not {"teacher answers", "warm-up"} & counts_add_up(tmp_path / "run").keys()
    assert summary.on_policy is not None
    assert summary.on_policy.num_rounds == 2  # 16 of 32 prompts, 8 to a round
    inputs = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["student"]["inputs"]
    assert inputs["rollouts"]["sampling"]["temperature"] == 1


def test_prompts_are_chosen_by_what_the_student_solves_when_the_rounds_begin(tmp_path: Path) -> None:
    run, band = tmp_path / "run", {"min_pass_rate": 0.0, "max_pass_rate": 0.7, "pass_rate_samples": 2}
    on_policy.run(tiny(choose_prompts="pass_rate", **band), run)
    stages = counts_add_up(run)
    names = list(stages)
    assert names.index("warm-up") < names.index("the student's samples") < names.index("student")
    counts = stages["prompts in the pass-rate band"]["counts"]
    assert set(counts["dropped"]) <= {"too easy"}
    chosen = {json.dumps(row["messages"]) for row in read_jsonl(run / "pass_rate" / "band.jsonl")}
    assert 0 < len(chosen) == counts["kept"] <= counts["rows_in"]
    assert all(row["num_tokens"] > 0 for row in read_jsonl(run / "pass_rate" / "completions.jsonl"))
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"instruction": f"Say {word}."}) + "\n" for word in "abcdefghijkl"))
    data = {"data": DataConfig(path=str(bare)), "test": DataConfig(path=""), "num_test": 2}
    with pytest.raises(UserError, match="some prompts have no gold answer; give data with gold answers"):
        on_policy.run(tiny(choose_prompts="pass_rate", **data, **band), tmp_path / "bare")
    assert not (tmp_path / "bare" / "completions.jsonl").exists()


def test_what_it_will_need_is_forecast(tmp_path: Path) -> None:
    forecast = make_forecast(
        "on-policy", tiny(), directory=tmp_path / "run", machine=Machine("cpu", 16e9, 16e9, "fp32")
    )
    stages = {stage.name: stage for stage in forecast.stages}
    assert list(stages)[:4] == ["teacher answers", "warm-up", "rollouts", "training"]
    assert not forecast.problems
    lengths = forecast.volume.prompt.mean + forecast.volume.answer.mean
    assert stages["training"].tokens_in == pytest.approx(16 * lengths)
    assert stages["rollouts"].tokens_out == pytest.approx(16 * min(forecast.volume.answer.mean, 24))
    without = make_forecast(
        "on-policy", tiny(warm_up_epochs=0), directory=tmp_path / "run", machine=Machine("cpu", 16e9, 16e9, "fp32")
    )
    assert [stage.name for stage in without.stages][:2] == ["rollouts", "training"]
    choosing = make_forecast(
        "on-policy",
        tiny(choose_prompts="pass_rate", pass_rate_samples=4),
        directory=tmp_path / "run",
        machine=Machine("cpu", 16e9, 16e9, "fp32"),
    )
    first = choosing.stages[0]
    assert first.name == "the student's samples"
    assert first.tokens_out == pytest.approx(4 * forecast.volume.rows * min(forecast.volume.answer.mean, 24))


def test_what_cannot_work_is_refused_before_an_answer_is_paid_for(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(random_model(hidden=32, layers=1), other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = json.loads(text)["model"]["vocab"]
    left, right = f'"g": {vocabulary["g"]},', f'"h": {vocabulary["h"]},'
    swapped = text.replace(left, f'"g": {vocabulary["h"]},').replace(right, f'"h": {vocabulary["g"]},')
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    train = tiny().train
    cases: dict[str, dict[str, Any]] = {
        "have different tokenizers": {"teacher": ModelConfig(model=str(other))},
        "a server names the most likely ids of each token": {"teacher": ModelConfig(model="openai:big")},
        "sampled_reverse_kl is for a teacher on a server": {"objective": "sampled_reverse_kl", "steps_per_round": 1},
        "does not compare whole distributions": {"objective": "cross_entropy"},
        "objective reverse_kl: temperature": {"temperature": 0.0},
        "no objective 'kl'": {"objective": "kl"},
        "ce_weight: on-policy": {"train": train.model_copy(update={"objective_settings": ("ce_weight=0.5",)})},
        "give a multiple of --steps-per-round": {"train": train.model_copy(update={"max_steps": 5})},
        "--rollout.num-samples 2 at temperature 0": {"rollout": SHORT.model_copy(update={"num_samples": 2})},
        "the warm-up would teach the student another kind": {"rollout": SAMPLED.model_copy(update={"thinking": True})},
        "no such file": {"teacher_prompt": str(tmp_path / "missing.txt")},
    }
    for number, (message, changes) in enumerate(cases.items()):
        run = tmp_path / str(number)
        with pytest.raises(UserError, match=message):
            on_policy.run(tiny(**changes), run)
        assert not (run / "completions.jsonl").exists(), message
        assert not (run / "data.jsonl").exists(), message
