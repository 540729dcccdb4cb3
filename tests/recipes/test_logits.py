"""The logits recipe: its whole line from a cache and with a live teacher, other architectures, what it refuses at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from distill_lab import cli
from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import read_jsonl
from distill_lab.recipes import logits
from tests.helpers import other_architecture
from tests.other_tokenizer import write_teacher

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=24, thinking=False)


def tiny(**changes: Any) -> logits.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:instructions", split="distill[:40]"),
        "test": DataConfig(path="tiny:instructions", split="test[:6]"),
        "sampling": SHORT,
        "test_sampling": SHORT,
        "train": TrainConfig(learning_rate=1e-3, tokens_per_batch=256, save_steps=0.5, validation_fraction=0.2),
        "measure": False,
    }
    return logits.PRESETS["tiny"].model_copy(update=settings | changes)


def test_the_whole_line_from_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "shared"))
    monkeypatch.setenv("COLUMNS", "300")
    run = tmp_path / "run"
    summary = logits.run(tiny(), run)
    assert summary == read_summary(run / "summary.json")
    assert (summary.recipe, summary.n) == ("logits", 6)
    assert set(summary.models) == {"teacher", "base", "student"}
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert list(stages)[:8] == [
        "data", "test", "overlap with the test", "prompts", "teacher answers", "training set", "teacher cache", "student"
    ]  # fmt: skip
    for name, stage in stages.items():
        assert stage["status"] == "done", name
        if stage["counts"]:
            counts = stage["counts"]
            assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values()), name
    captured = json.loads((run / "teacher_cache.json").read_text())
    [folder] = (tmp_path / "shared" / "teachers").iterdir()
    assert captured["folder"] == str(folder)
    assert captured["num_rows"] + captured["num_known"] == len(
        {json.dumps(row) for row in read_jsonl(run / "train.jsonl")}
    )
    steps = [row for row in read_jsonl(run / "training_log.jsonl") if "loss" in row]
    assert all(row["metrics"].keys() == {"kd", "ce"} for row in steps)
    assert all(row["loss"] == pytest.approx(row["metrics"]["kd"], rel=1e-5, abs=1e-6) for row in steps)
    # Again with another student's settings: nothing is captured a second time.
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    logits.run(tiny(train=tiny().train.model_copy(update={"learning_rate": 2e-3})), run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    again = json.loads((run / "run.json").read_text())["stages"]
    assert again["teacher answers"] == stages["teacher answers"]
    assert again["student"]["key"] != stages["student"]["key"]

    # `distill cache` shows answers and distributions, and finds what is damaged.
    assert cli.main(["cache", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "tiny:teacher" in shown
    assert "sampled 64" in shown
    assert "teacher caches checked: 1, nothing is damaged" in shown
    assert cli.main(["cache", "--folder", str(folder)]) == 0
    assert "sampled 64" in capsys.readouterr().out
    [shard] = folder.glob("*.kd")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 255
    shard.write_bytes(data)
    assert cli.main(["cache", "--check"]) == 2
    assert f"{shard} is not what was written" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not what was written; remove it, and its rows will be captured again"):
        logits.run(tiny(train=tiny().train.model_copy(update={"learning_rate": 3e-3})), run)
    assert cli.main(["cache", "--clear-teachers"]) == 0
    assert not list((tmp_path / "shared" / "teachers").iterdir())


def test_a_live_teacher_and_the_datas_own_answers(tmp_path: Path) -> None:
    config = tiny(
        objective="jsd", cache_mode="off", relabel=False, train=tiny().train.model_copy(update={"max_steps": 2})
    )
    logits.run(config, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "teacher answers" not in manifest["stages"]
    assert "teacher cache" not in manifest["stages"]
    inputs = manifest["stages"]["student"]["inputs"]["train"]
    # Another than the teacher wrote the answers: they count a little.
    assert inputs["objective_settings"] == ["ce_weight=0.2", "temperature=1.0"]
    for row in read_jsonl(tmp_path / "run" / "training_log.jsonl"):
        if "loss" in row:
            mixed = 0.8 * row["metrics"]["kd"] + 0.2 * row["metrics"]["ce"]
            assert row["loss"] == pytest.approx(mixed, rel=1e-5)


def test_rows_are_chosen_by_what_they_can_still_teach(tmp_path: Path) -> None:
    chosen: dict[str, list[Any]] = {}
    for how in ("gap", "random"):
        run = tmp_path / how
        logits.run(tiny(choose_rows=how, rows_share=0.4, train=tiny().train.model_copy(update={"max_steps": 2})), run)
        stages = json.loads((run / "run.json").read_text())["stages"]
        counts = stages["chosen rows" if how == "gap" else "random rows"]["counts"]
        rows = list(read_jsonl(run / "train.jsonl"))
        chosen[how] = list(read_jsonl(run / "chosen.jsonl"))
        assert counts["kept"] == len(chosen[how]) == round(0.4 * len(rows))
        assert counts["rows_in"] == len(rows) == counts["kept"] + sum(counts["dropped"].values())
        assert all(row in rows for row in chosen[how])
        assert stages["student"]["counts"]["kept"] == len(chosen[how])
        scores = list(read_jsonl(run / "learnability.jsonl"))
        assert len(scores) == len(rows)
        assert all(("gap" in score) == (how == "gap") for score in scores)
        if how == "gap":
            assert all(score["gap"] == pytest.approx(score["student"] - score["teacher"], abs=2e-6) for score in scores)
        captured = json.loads((run / "teacher_cache.json").read_text())
        # For the gap all rows are captured, so that another student finds them; else the teacher reads what was drawn.
        read = rows if how == "gap" else chosen[how]
        assert captured["num_rows"] == len({json.dumps(row) for row in read})
    assert chosen["gap"] != chosen["random"]
    with pytest.raises(UserError, match="--choose-rows gap reads from the teacher's cache"):
        logits.run(tiny(choose_rows="gap", cache_mode="off"), tmp_path / "off")


@pytest.mark.parametrize(("kind", "more_rows"), [("sliding window", 0), ("experts", 0), ("untied head", 128)])
def test_other_architectures_teach(
    kind: str, more_rows: int, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    student = random_model(hidden=32, layers=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    teacher = other_architecture(kind, tokenizer, tmp_path / "teacher", more_rows=more_rows)
    run = tmp_path / "run"
    logits.run(
        tiny(
            teacher=teacher.model_copy(update={"dtype": "fp32"}),
            student=ModelConfig(model=str(student)),
            relabel=False,
            cache_mode="off" if kind == "sliding window" else "sampled",
            train=TrainConfig(learning_rate=2e-2, tokens_per_batch=256, num_epochs=6, validation_fraction=0.2),
            num_test=0,
            test=DataConfig(path=""),
        ),
        run,
    )
    training = json.loads((run / "training.json").read_text())
    assert training["validation_loss_after"] < training["validation_loss_before"]


def test_a_teacher_with_another_tokenizer(
    random_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole line: found by itself, shown before training, and the student comes nearer to what the teacher says."""
    teacher = ModelConfig(model=str(write_teacher(tmp_path / "teacher", "gemma3")), dtype="fp32")
    config = tiny(
        teacher=teacher, student=ModelConfig(model=str(random_model(hidden=32, layers=1))), relabel=False, cache_mode="off",
        train=TrainConfig(learning_rate=2e-2, tokens_per_batch=256, num_epochs=4, validation_fraction=0.2),
    )  # fmt: skip
    assert config.objective == "auto"
    run = tmp_path / "run"
    summary = logits.run(config, run)
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert stages["student"]["inputs"]["train"]["objective"] == "chunk_likelihood"
    assert list(stages).index("tokenizer agreement") < list(stages).index("student")
    counts = stages["tokenizer agreement"]["counts"]
    assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values())
    found = summary.agreement
    assert found is not None
    assert read_summary(run / "summary.json").agreement == found
    assert found.student_tokens == found.same + found.parts + sum(found.dropped.values())
    assert found.same > 0
    assert found.chunks > 0
    training = json.loads((run / "training.json").read_text())
    assert training["validation_loss_after"] < training["validation_loss_before"]
    steps = [row for row in read_jsonl(run / "training_log.jsonl") if "loss" in row]
    assert all(row["metrics"].keys() == {"kd", "ce", "kd_same", "kd_chunks"} for row in steps)
    assert '<section id="tokenizers">' in (run / "report.html").read_text(encoding="utf-8")
    # A cache of another tokenizer's distributions, other objectives and other recipes are refused before anything is done.
    cases = {
        r"train.teacher-cache.mode sampled: a cache holds .*--cache-mode off": {"cache_mode": "sampled"},
        r"different tokenizers: .*`distill logits --objective chunk_likelihood`": {"objective": "forward_kl"},
    }
    for number, (message, changes) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            logits.run(config.model_copy(update=changes), tmp_path / str(number))
        assert not (tmp_path / str(number) / "data.jsonl").exists()
    for recipe, objective, message in (
        ("on-policy", "chunk_likelihood", "on-policy the student writes new ones in every round; use `distill logits`"),
        ("on-policy", "reverse_kl", "have different tokenizers"),
        ("draft", "chunk_likelihood", "a draft guesses the target's tokens, so it needs the target's tokenizer"),
    ):
        command = [recipe, "--preset", "tiny", "--teacher", teacher.model, "--objective", objective]
        assert cli.main([*command, "--run", str(tmp_path / recipe / objective)]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_models_that_do_not_fit_each_other_are_refused_before_an_answer_is_paid_for(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(random_model(hidden=32, layers=1), other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = json.loads(text)["model"]["vocab"]
    left, right = f'"g": {vocabulary["g"]},', f'"h": {vocabulary["h"]},'
    swapped = text.replace(left, f'"g": {vocabulary["h"]},').replace(right, f'"h": {vocabulary["g"]},')
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    cases = {
        "have different tokenizers": {"teacher": ModelConfig(model=str(other)), "objective": "forward_kl"},
        "a cache holds the teacher's distributions at the student's tokens": {"teacher": ModelConfig(model=str(other))},
        "a server gives tokens, not distributions": {"teacher": ModelConfig(model="openai:big")},
        "jsd cannot be learned from a sampled cache": {"objective": "jsd"},
        "objective forward_kl: temperature": {"temperature": 0.0},
        "no objective 'kl'": {"objective": "kl"},
    }
    for number, (message, changes) in enumerate(cases.items()):
        run = tmp_path / str(number)
        with pytest.raises(UserError, match=message):
            logits.run(tiny(**changes), run)
        assert not (run / "completions.jsonl").exists(), message
        assert not (run / "data.jsonl").exists(), message
