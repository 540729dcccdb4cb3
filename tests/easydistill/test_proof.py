"""The student of an EasyDistill job, tested beside teacher and base student in the job's run directory."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.config import STEP_BY_STEP, DataConfig
from distill_lab.easydistill import presets
from distill_lab.easydistill.job import run_directory
from distill_lab.easydistill.proof import ALSO_TRAINED, Test, leave_out, prove
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import read_jsonl, write_json, write_jsonl
from distill_lab.report.run_student import student_of
from distill_lab.tiny.tasks import rows as task_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def config(folder: Path) -> Path:
    """A kd_sft config on 24 word problems, in the current folder."""
    rows = [
        {"instruction": f"{row['messages'][0]['content']}\n{STEP_BY_STEP}", "output": row["messages"][1]["content"]}
        for row in islice(task_rows("problems", "distill"), 24)
    ]
    write_json(Path("data/cot.json"), rows)
    write_json(
        Path("config.json"), presets.system2_config("tiny:student", "data/cot.json", "./out", learning_rate=4e-3)
    )
    return Path("config.json")


def test_a_student_is_tested_on_rows_it_was_not_trained_on_and_trained_once(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [
        "run",
        str(config),
        "--test",
        "tiny:problems",
        "--test.split",
        "distill[20:28]",
        "--teacher",
        "tiny:teacher",
    ]
    told += ["--instruction", STEP_BY_STEP, "--max-new-tokens", "160", "--no-measure"]
    assert cli.main(told) == 0
    directory = run_directory("out")
    summary = read_summary(directory / "summary.json")
    assert (summary.n, set(summary.models)) == (4, {"teacher", "base", "student"})
    assert summary.metric
    assert summary.metric.grader == "numeric"
    assert summary.models["teacher"].score == 1.0
    assert summary.models["student"].several_steps is not None
    stages = json.loads((directory / "run.json").read_text(encoding="utf-8"))["stages"]
    assert stages["unseen test"]["counts"]["dropped"] == {ALSO_TRAINED: 4}
    asked = [row["messages"][0]["content"] for row in read_jsonl(directory / "unseen.jsonl")]
    assert all(text.endswith(STEP_BY_STEP) for text in asked)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "distill run config.json --test.path tiny:problems --test.split" in page
    assert "Loss, nats per token" in page
    assert student_of(directory).model == str(Path.cwd() / "out")
    monkeypatch.setattr("distill_lab.train.student.train_student", lambda *args, **how: pytest.fail("trained again"))
    test = Test(data=DataConfig(path="tiny:problems", split="test[:2]"), teacher="tiny:teacher", measure=False)
    assert prove(config, test.model_copy(update={"max_new_tokens": 20})).n == 2


def test_what_cannot_be_tested_is_said_before_the_training(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_lab.easydistill.proof.run", lambda *args, **how: pytest.fail("it was trained"))
    data = DataConfig(path="tiny:problems", split="test[:2]")
    for test, said in (
        (Test(data=data), "names no teacher to compare with; give --teacher"),
        (Test(data=data, teacher="no/such-model"), "Invalid teacher model: no/such-model"),
        (Test(data=data, teacher="tiny:teacher", grader="numerik"), "numerik"),
    ):
        with pytest.raises(UserError, match=said):
            prove(config, test)


def test_rows_that_were_trained_on_are_left_out_whatever_their_system_prompt(tmp_path: Path) -> None:
    def row(text: str, *, system: str = "") -> dict[str, object]:
        start = [{"role": "system", "content": system}] if system else []
        return {"id": text, "messages": [*start, {"role": "user", "content": text}]}

    write_jsonl(tmp_path / "trained.jsonl", [row("a"), row("b", system="Be brief.")])
    write_jsonl(tmp_path / "test.jsonl", [row("a", system="Be kind."), row("b"), row("c")])
    counts = leave_out(tmp_path / "test.jsonl", tmp_path / "trained.jsonl", tmp_path / "kept.jsonl")
    assert (counts.rows_in, counts.kept, counts.dropped) == (3, 1, {ALSO_TRAINED: 2})
    assert [kept["id"] for kept in read_jsonl(tmp_path / "kept.jsonl")] == ["c"]


def test_a_test_of_nothing_but_training_rows_is_refused(config: Path) -> None:
    test = Test(data=DataConfig(path="data/cot.json"), teacher="tiny:teacher", measure=False)
    with pytest.raises(NoData, match=r"no test row is left .* 24 dropped: also in the training data"):
        prove(config, test)
