"""The System 1 recipe: its acceptance criteria, its whole line on the tiny family, real rows, resume, and redo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.evaluation.summary_parts import Generated
from distill_lab.files import fingerprints
from distill_lab.files.jsonl import read_jsonl
from distill_lab.recipes import system1
from scripts.random_qwen import build
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=24, thinking=False)


def tiny(**changes: Any) -> system1.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:instructions", split="distill[:60]"),
        "test": DataConfig(path="tiny:instructions", split="test[:20]"),
        "sampling": SHORT,
        "test_sampling": SHORT,
        "train": TrainConfig(
            num_epochs=3, learning_rate=3e-4, tokens_per_batch=512, save_steps=0.5, validation_fraction=0.3
        ),
        "measure": False,
    }
    return system1.PRESETS["tiny"].model_copy(update=settings | changes)


def test_the_whole_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Path.open

    def counted(self: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        if "r" in mode:
            opened.append(self.name)
        return original(self, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(fingerprints, "SETTLED_S", -1.0)  # as in a run of minutes
    summary: Any = system1.run(tiny(measure=True), tmp_path / "run")
    monkeypatch.undo()
    # Its fingerprint, the overlap with the training prompts, the prompts themselves, and the page before and after speeds.
    assert opened.count("test.jsonl") <= 5
    run = tmp_path / "run"
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["recipe"] == "system1"
    assert manifest["config"]["teacher"]["model"] == "tiny:teacher"
    for name, stage in manifest["stages"].items():
        assert stage["status"] == "done", name
        if stage["counts"]:
            counts = stage["counts"]
            assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values()), name
    assert len(list(read_jsonl(run / "completions.jsonl"))) == 60
    assert summary == read_summary(run / "summary.json")
    assert summary.recipe == "system1"
    assert summary.n == 20
    assert set(summary.models) == {"teacher", "base", "student"}
    assert summary.speedup == min(summary.speedup_batched, summary.speedup_single) > 0
    # A slow machine takes too few answers for a 95th percentile.
    assert set(summary.kpis) | {"p95 < 2 s per 128 tokens"} == {
        "retention >= 0.9",
        "speedup >= 3",
        "p95 < 2 s per 128 tokens",
    }
    page = (run / "report.html").read_text()
    for title in ("Loss, nats per token", "By type", "By prompt characters", "Tokens per answer", "All 20 test items"):
        assert title in page
    assert (run / "report.md").is_file()
    assert sum(group.n for grouping in summary.groups if grouping.by == "type" for group in grouping.groups) == 20
    tokens = sum(row["num_tokens"] for row in read_jsonl(run / "completions.jsonl"))
    assert summary.generated["teacher answers"] == Generated(60, tokens)
    assert len(summary.models["student"].latencies_s) == summary.models["student"].num_latencies
    training = json.loads((run / "training.json").read_text())
    # A few dozen rows teach nothing that other rows show; that training lowers the loss is test_trainer's.
    assert training["validation_loss_after"] != training["validation_loss_before"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(run / "student").num_parameters() < 1_000_000
    assert AutoTokenizer.from_pretrained(run / "student").chat_template


def test_finished_stages_are_skipped_and_redone_when_their_inputs_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    system1.run(tiny(), run)
    completions, student = run / "completions.jsonl", run / "student" / "model.safetensors"
    before = completions.stat().st_mtime_ns, student.stat().st_mtime_ns
    system1.run(tiny(), run)
    assert (completions.stat().st_mtime_ns, student.stat().st_mtime_ns) == before
    system1.run(tiny(train=TrainConfig(num_epochs=1, tokens_per_batch=1024)), run)
    assert completions.stat().st_mtime_ns == before[0]
    assert student.stat().st_mtime_ns != before[1]
    system1.run(tiny(data=DataConfig(path="tiny:instructions", split="distill[:50]")), run)
    assert len(list(read_jsonl(completions))) == 50


def test_ac1_the_students_directory_is_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system1.run(tiny(out="distilled-tiny", num_test=0, test=DataConfig(path="")), "run")
    files = {path.name for path in Path("distilled-tiny").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not Path("run/student").exists()


def test_a_directory_that_is_not_the_runs_own_is_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not created by this run"):
        system1.run(tiny(out=str(mine)), tmp_path / "run")
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_ac3_no_data(tmp_path: Path) -> None:
    config = tiny(data=DataConfig(path="tiny:instructions", split="distill[:0]"), out=str(tmp_path / "student"))
    with pytest.raises(NoData) as caught:
        system1.run(config, tmp_path / "run")
    assert str(caught.value) == "No data for System 1 distillation"
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / "run" / "student").exists()


def test_ac4_invalid_student(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        system1.run(tiny(student=ModelConfig(model="Qwen/Qwen9-nothing")), tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert lines[0] == "Invalid student model: Qwen/Qwen9-nothing"
    assert lines[1] == "Example: Qwen/Qwen2.5-0.5B-Instruct"
    assert not (tmp_path / "run" / "completions.jsonl").exists()


def test_the_command_prints_the_messages_and_exits_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill_lab.cli", "system1", "--preset", "tiny", "--run", str(tmp_path / "run")]
    empty = subprocess.run([*command, "--data.split", "distill[:0]"], capture_output=True, text=True, check=False)
    assert (empty.returncode, empty.stderr.strip()) == (2, "No data for System 1 distillation")
    invalid = subprocess.run([*command, "--student", "no/such model"], capture_output=True, text=True, check=False)
    assert invalid.returncode == 2
    assert invalid.stderr.strip().startswith(
        "Invalid student model: no/such model\nExample: Qwen/Qwen2.5-0.5B-Instruct"
    )


def test_kill_during_labelling_asks_only_what_is_missing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny(data=DataConfig(path="tiny:instructions", split="distill[:200]"), engine=EngineConfig(batch_size=8))
    code = (
        "import sys; from distill_lab.recipes import system1; "
        "system1.run(system1.Config.model_validate_json(sys.argv[1]), sys.argv[2])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, config.model_dump_json(), str(run)]
    process = subprocess.Popen(command, env=environment)
    completions = run / "completions.jsonl"
    while not (completions.exists() and completions.read_bytes().count(b"\n") >= 24):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = completions.read_bytes()
    whole = kept[: kept.rindex(b"\n") + 1]
    assert 24 <= whole.count(b"\n") < 200
    subprocess.run(command, env=environment, check=True)
    assert completions.read_bytes().startswith(whole)
    ids = [row["id"] for row in read_jsonl(completions)]
    assert len(ids) == len(set(ids)) == 200


@pytest.mark.parametrize(
    ("file", "rows", "tokens"),
    [("instructions/self_instruct_seed_tasks.jsonl", 100, 1024), ("cot/easydistill_BC_init_math.json", 40, 4096)],
)
def test_real_rows_train_save_reload_and_answer(
    shared_data: Path, tmp_path: Path, file: str, rows: int, tokens: int
) -> None:
    build(shared_data / "tokenizers" / "qwen2.5", tmp_path / "qwen", hidden=64, layers=2)
    student = ModelConfig(model=str(tmp_path / "qwen"))
    config = system1.Config(
        teacher=student,
        student=student,
        data=DataConfig(path=str(shared_data / file), split=f"train[:{rows}]"),
        num_test=4,
        test_sampling=SamplingConfig(max_new_tokens=8),
        train=TrainConfig(learning_rate=3e-3, num_epochs=2, tokens_per_batch=tokens, max_length=2048, save_steps=1000),
        measure=False,
    )
    summary: Any = system1.run(config, tmp_path / "run")
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["validation_loss_after"] < training["validation_loss_before"] - 0.5
    assert summary.n == 4
    answers = list(read_jsonl(tmp_path / "run" / "eval" / "student.completions.jsonl"))
    assert len(answers) == 4
    assert all(row["num_tokens"] >= 1 and row["finish_reason"] in ("stop", "length") for row in answers)


@pytest.mark.parametrize("how", ["flag", "yaml"])
def test_a_presets_test_set_is_replaced_by_held_out_rows(tmp_path: Path, how: str) -> None:
    """From the command line to the scores: --test.path "" tests on rows of the data that are not trained."""
    command = [sys.executable, "-m", "distill_lab.cli", "system1", "--preset", "tiny", "--run", str(tmp_path / "run")]
    command += ["--data.split", "distill[:60]", "--num-test", "6", "--no-measure", "--train.max-steps", "2"]
    command += ["--sampling.max-new-tokens", "24", "--test-sampling.max-new-tokens", "24"]
    if how == "yaml":
        (tmp_path / "settings.yaml").write_text('test: ""\n')
        command += ["--config", str(tmp_path / "settings.yaml")]
    else:
        command += ["--test.path", ""]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data, test, trained = (
        {row["id"] for row in read_jsonl(tmp_path / "run" / f"{name}.jsonl")}
        for name in ("data", "test", "completions")
    )
    assert len(test) == 6
    assert test < data
    assert not test & trained
    assert trained
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.n == 6
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["test"]["path"] == ""
