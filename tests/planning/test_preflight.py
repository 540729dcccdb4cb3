"""What can be known to fail is refused before any model answers, any request is sent and anything is trained."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.config import ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.planning.preflight import check_gold, check_training, check_writable

RECIPES = ("system1", "system2", "cot", "verified", "prompt")
BAD = {
    "--train.report-to wandb": "--train.report-to wandb needs a package that is not installed; pip install wandb",
    "--train.report-to excel": "--train.report-to excel: no such tracker; choose from",
    "--train.optim adamw_tourch": "--train.optim adamw_tourch: unknown value; choose from adamw_torch",
    "--train.lr-scheduler-type cosin": "--train.lr-scheduler-type cosin: unknown value; choose from linear",
    "--train.lr-scheduler-type warmup_stable_decay": "needs settings that have no flags",
    "--student.quantization 8bit --train.lora.r 0": "8bit weights cannot be trained; train adapters on them",
    "--train.lora.r 4 --train.lora.targets wq wk": "tiny:student has no linear layer wq, wk; it has down_proj, gate_proj",
    "--grader numerik": "no grader 'numerik'; choose from exact",
    "--grader judge:no-such/judge": "Invalid judge model: no-such/judge",
    "--grader judge:openai:big": "no server address",
    "--engine vllm": "the engine vllm needs vLLM",
    "--engine ray --engine.ray-engine ray": "ray",
    "--engine vlm": "no engine 'vlm'",
    "--teacher no-such/teacher": "Invalid teacher model: no-such/teacher",
    "--student no-such/student": "Invalid student model: no-such/student",
    "--sampling.num-samples 3 --sampling.temperature 0": "gives the same answer each time",
    "--test tiny:no-such": "tiny",
    "--out {taken}": "already exists and was not created by this run",
    "--out {file}/student": "is a file, not a folder",
}


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started after all: an engine, a request, a training."""
    started: list[str] = []

    def refuse(what: str) -> Any:
        def called(*arguments: Any, **settings: Any) -> Any:
            started.append(what)
            raise AssertionError(f"{what} was started")

        return called

    monkeypatch.setattr("distill_lab.generation.engines.transformers.load", refuse("an engine"))
    monkeypatch.setattr("distill_lab.generation.engines.openai_api.OpenAIEngine.generate", refuse("a request"))
    monkeypatch.setattr("distill_lab.train.student.train_student", refuse("a training"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return started


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("flags", BAD)
def test_each_bad_setting_of_a_recipe_is_refused_before_anything_is_paid(
    recipe: str, flags: str, tmp_path: Path, nothing_starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if recipe == "prompt" and "num-samples" in flags:
        pytest.skip("prompt takes one sample of each text, and says so")
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("x")
    line = flags.format(taken=tmp_path / "taken", file=tmp_path / "file").split()
    data = ["--data.split", "distill[:40]"]
    code = cli.main([recipe, "--preset", "tiny", "--run", str(tmp_path / "run"), *data, *line])
    printed = capsys.readouterr()
    assert nothing_starts == []
    assert code == 2, printed
    assert BAD[flags] in printed.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --model tiny:student --grader numerik", "no grader 'numerik'"),
        ("eval --model tiny:student --base no-such/base", "no-such/base"),
        ("eval --model tiny:student --engine vllm", "needs vLLM"),
        ("eval --model tiny:student --sampling.num-samples 4", "gives the same answer each time"),
        (
            "eval --model tiny:student --grader numeric",
            "tiny:instructions: the grader numeric cannot read any gold answer",
        ),
        ("generate --model tiny:student --engine vlm", "no engine 'vlm'"),
        ("generate --model no-such/model", "no-such/model"),
        ("generate --model openai:big", "no server address"),
    ],
)
def test_commands_refuse_before_they_ask(
    line: str, message: str, tmp_path: Path, nothing_starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "tiny:instructions", "--data.split", "test[:4]", "--out", str(tmp_path / "out.jsonl")]
    assert cli.main([*line.split(), *data]) == 2
    assert nothing_starts == []
    assert message in capsys.readouterr().err


def test_train_refuses_before_it_reads(
    tmp_path: Path, nothing_starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "train.jsonl"
    write_jsonl(rows, [{"prompt": [], "completion": []}])
    line = ["train", "--student", "tiny:student", "--rows", str(rows), "--out", str(tmp_path / "student")]
    for flags, message in (
        ("--train.report-to wandb", "pip install wandb"),
        ("--student.quantization 4bit", "train adapters on them"),
        ("--train.optim adam", "--train.optim adam: unknown value"),
    ):
        assert cli.main([*line, *flags.split()]) == 2
        assert message in capsys.readouterr().err
    assert nothing_starts == []


def test_data_without_answers_is_told_before_it_is_asked(
    tmp_path: Path, nothing_starts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"Say {n}", "input": ""}) + "\n" for n in range(20)))
    line = ["eval", "--model", "tiny:student", "--data", str(data), "--out", str(tmp_path / "e.jsonl")]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert "no gold answer" in said
    assert "--predictions FILE" in said
    assert nothing_starts == []


def test_a_test_of_another_world_is_refused(tmp_path: Path, nothing_starts: list[str]) -> None:
    system1 = import_module("distill_lab.recipes.system1")
    tiny = system1.PRESETS["tiny"]
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    config = tiny.model_copy(update={"data": tiny.data.model_copy(update={"path": str(data), "split": "train"})})
    with pytest.raises(UserError, match=r"the test set tiny:instructions does not match .*mine\.jsonl"):
        system1.run(config, tmp_path / "run")
    assert nothing_starts == []


def test_good_settings_pass() -> None:
    check_training(ModelConfig(model="tiny:student"), TrainConfig(report_to=("none",)))
    check_training(
        ModelConfig(model="tiny:student", quantization="4bit"),
        TrainConfig.model_validate(
            {"lora": {"r": 4, "targets": ["q_proj"]}, "lr_scheduler_type": "cosine_with_min_lr"}
        ),
    )


def test_gold_answers_are_tried_as_the_grader_will(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"

    def write(answer: str | None) -> Path:
        write_jsonl(path, [{"id": "0", "messages": [{"role": "user", "content": "?"}], "answer": answer}])
        return path

    check_gold(write("12"), "numeric")
    check_gold(write(None), "judge:openai:any")
    with pytest.raises(UserError, match="the grader numeric cannot read any gold answer"):
        check_gold(write("twelve"), "numeric")
    with pytest.raises(UserError, match="no gold answer"):
        check_gold(write(None), "exact")


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "student")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="is not writable"):
        check_writable(Path("/proc/1/student"))


def test_several_samples_need_a_temperature() -> None:
    assert SamplingConfig(num_samples=3, temperature=0.1).num_samples == 3
