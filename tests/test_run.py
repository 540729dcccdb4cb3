"""run.py: the lock, and stages that are skipped, redone or gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import JsonlAppender, read_jsonl, write_jsonl
from distill_lab.generation.model_identity import model_inputs
from distill_lab.run import Run
from distill_lab.types import Counts
from tests.helpers import model_folder

# --- the lock


def open_run(folder: Path, recipe: str = "test", **settings: Any) -> Run:
    return Run.open(folder, recipe=recipe, config={}, **settings)


def test_a_second_holder_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    code = f"from distill_lab.run import Run; Run.open({str(tmp_path)!r}, recipe='test', config={{}})"
    with open_run(tmp_path):
        with pytest.raises(UserError, match="in use by another process"):
            open_run(tmp_path)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "in use by another process" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    code = f"""
import time
from distill_lab.run import Run
run = Run.open({str(tmp_path)!r}, recipe="test", config={{}})
print("held", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use"):
            open_run(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    open_run(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ('{"recipe": "other", "stages": {}}', "contains a other run"),
        ('{"recipe": "te', "not the run.json of a run"),
        ("{}", "not the run.json of a run"),
        ("[]", "not the run.json of a run"),
    ],
)
def test_a_directory_of_something_else_is_refused_and_let_go(tmp_path: Path, manifest: str, reason: str) -> None:
    (tmp_path / "run.json").write_text(manifest)
    # Holding the exception holds its frames: only closing frees the lock.
    with pytest.raises(UserError, match=reason) as caught:
        open_run(tmp_path)
    assert (tmp_path / "run.json").read_text() == manifest
    (tmp_path / "run.json").unlink()
    with open_run(tmp_path):
        assert json.loads((tmp_path / "run.json").read_text())["recipe"] == "test"
    assert caught.value.__traceback__ is not None


# --- stages


class Work:
    """Appends one row per call to what it finds; fails where told to."""

    def __init__(self, fail: bool = False) -> None:
        self.fail, self.found = fail, list[int]()

    def __call__(self, path: Path) -> Counts:
        with JsonlAppender(path) as appender:
            self.found.append(sum(1 for _ in read_jsonl(path)))
            appender.append([{"row": self.found[-1]}])
        if self.fail:
            raise RuntimeError("killed")
        return Counts(1, 1)


def test_a_finished_stage_is_skipped_while_nothing_changes(tmp_path: Path) -> None:
    work, source = Work(), tmp_path / "source"
    source.write_text("1")
    for number in range(3):
        with open_run(tmp_path / "run") as run:
            stage = run.stage("rows", "rows.jsonl", inputs={"source": source, "k": 1}, work=work)
            assert run.skipped == ["rows"] * bool(number)
            assert stage.counts == Counts(1, 1)
            assert run.seconds("rows") >= 0
            assert stage.path == tmp_path / "run" / "rows.jsonl"
    assert work.found == [0]


@pytest.mark.parametrize("change", ["setting", "source", "output edited", "output gone"])
def test_a_stage_is_redone_from_nothing_when_something_changes(tmp_path: Path, change: str) -> None:
    work, source, setting = Work(), tmp_path / "source", 1
    source.write_text("1")
    with open_run(tmp_path / "run") as run:
        path = run.stage("rows", "rows.jsonl", inputs={"source": source, "k": setting}, work=work).path
        run.path("rows.jsonl.work").mkdir()
    if change == "setting":
        setting = 2
    elif change == "source":
        source.write_text("2")
    elif change == "output edited":
        path.write_text('{"row": 7}\n')
    else:
        path.unlink()
    with open_run(tmp_path / "run") as run:
        run.stage("rows", "rows.jsonl", inputs={"source": source, "k": setting}, work=work)
        assert run.skipped == []
        assert not run.path("rows.jsonl.work").exists()
    assert work.found == [0, 0]
    assert list(read_jsonl(path)) == [{"row": 0}]


def test_an_interrupted_stage_goes_on_with_what_it_left(tmp_path: Path) -> None:
    broken, work = Work(fail=True), Work()
    with pytest.raises(RuntimeError, match="killed"), open_run(tmp_path) as run:
        run.stage("rows", "rows.jsonl", inputs={"k": 1}, work=broken)
    (tmp_path / "rows.jsonl.work").mkdir()
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(b'{"row": ')
    with open_run(tmp_path) as run:
        run.stage("rows", "rows.jsonl", inputs={"k": 1}, work=work)
    assert (broken.found, work.found) == ([0], [1])
    assert (tmp_path / "rows.jsonl.work").is_dir()


def test_an_interrupted_stage_with_other_inputs_begins_again(tmp_path: Path) -> None:
    broken, work = Work(fail=True), Work()
    with pytest.raises(RuntimeError, match="killed"), open_run(tmp_path) as run:
        run.stage("rows", "rows.jsonl", inputs={"k": 1}, work=broken)
    with open_run(tmp_path) as run:
        run.stage("rows", "rows.jsonl", inputs={"k": 2}, work=work)
    assert work.found == [0]


def test_a_stage_follows_the_stage_before_it(tmp_path: Path) -> None:
    second = Work()
    for setting in (1, 2, 2):
        with open_run(tmp_path) as run:
            rows = [{"k": setting}]
            first = run.stage(
                "first", "first.jsonl", inputs={"k": setting}, work=lambda path, rows=rows: note(path, rows)
            )
            run.stage("second", "second.jsonl", inputs={"first": first.path}, work=second)
    assert second.found == [0, 0]


def note(path: Path, rows: list[dict[str, Any]]) -> Counts:
    return Counts(len(rows), write_jsonl(path, rows))


def test_a_directory_is_an_output_too(tmp_path: Path) -> None:
    made: list[int] = []

    def build(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text("{}")
        made.append(1)

    for _ in range(2):
        with open_run(tmp_path) as run:
            run.stage("student", "student", inputs={"k": 1}, work=build)
    assert made == [1]
    path = tmp_path / "student"
    (path / "config.json").write_text('{"changed": 1}')
    with open_run(tmp_path) as run:
        run.stage("student", "student", inputs={"k": 1}, work=build)
    assert made == [1, 1]
    assert (path / "config.json").read_text() == "{}"


def test_what_the_run_did_not_make_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("1")
    with open_run(tmp_path / "run") as run, pytest.raises(UserError, match="was not created by this run"):
        run.stage("student", str(theirs), inputs={}, work=Work())
    assert (theirs / "precious").read_text() == "1"


def test_a_run_that_was_moved_goes_on(tmp_path: Path) -> None:
    with open_run(tmp_path / "old") as run:
        run.stage("kept", "kept.jsonl", inputs={}, work=Work())
        run.stage("rows", "rows.jsonl", inputs={"k": 1}, work=Work())
    (tmp_path / "old").rename(tmp_path / "new")
    again = Work()
    with open_run(tmp_path / "new") as run:
        run.stage("kept", "kept.jsonl", inputs={}, work=again)
        assert run.skipped == ["kept"]
        run.stage("rows", "rows.jsonl", inputs={"k": 2}, work=again)
        assert run.skipped == ["kept"]
    assert str(tmp_path) not in (tmp_path / "new" / "run.json").read_text()


def test_a_student_beside_a_run_moves_along_with_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def train(path: Path) -> None:
        made.append(path)
        model_folder(path)

    def go(place: str, setting: int) -> Run:
        with open_run(tmp_path / place / "run") as run:
            run.stage("student", str(tmp_path / place / "student"), inputs={"k": setting}, work=train)
        return run

    go("old", 1)
    shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copyfile)
    assert go("new", 1).skipped == ["student"]
    student = tmp_path / "new" / "student"
    assert json.loads((tmp_path / "new" / "run" / "run.json").read_text())["stages"]["student"]["at"] == str(student)
    shutil.copytree(tmp_path / "old", tmp_path / "third", copy_function=shutil.copyfile)
    assert go("third", 2).skipped == []  # trained again, in place of what came along
    assert made == [tmp_path / "old" / "student", tmp_path / "third" / "student"]
    shutil.copytree(tmp_path / "old", tmp_path / "fourth", copy_function=shutil.copyfile)
    (tmp_path / "fourth" / "student" / "config.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="was not created by this run"):
        go("fourth", 2)


def test_the_watch_hears_of_stages_and_counts(tmp_path: Path) -> None:
    class Ear(ProgressReporter):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def stage(self, title: str) -> None:
            self.heard.append(f"stage {title}")

        def skipped(self, title: str) -> None:
            self.heard.append(f"skipped {title}")

        def note(self, text: str) -> None:
            self.heard.append(text)

    ear = Ear()
    for _ in range(2):
        with open_run(tmp_path, watch=ear) as run:
            run.stage("rows", "rows.jsonl", inputs={}, work=Work())
    assert ear.heard == ["stage rows", "1 in, 1 kept", "skipped rows"]


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    with Run.open(tmp_path, recipe="test", config={"k": 1}) as run:
        run.stage("rows", "rows.jsonl", inputs={}, work=Work())
    manifest = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert manifest["recipe"] == "test"
    assert manifest["config"] == {"k": 1}
    assert manifest["versions"]["torch"]
    assert manifest["stages"]["rows"]["status"] == "done"
    assert manifest["stages"]["rows"]["counts"] == {"rows_in": 1, "kept": 1, "dropped": {}}


def test_another_place_that_holds_something_else_is_never_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")

    def work(path: Path) -> None:
        path.mkdir()
        (path / "model").write_text("weights")

    with Run.open(tmp_path / "run", recipe="r", config={}) as run:
        run.stage("student", str(tmp_path / "first"), inputs={"a": 1}, work=work)
        with pytest.raises(UserError, match="was not created by this run"):
            run.stage("student", str(mine), inputs={"a": 2}, work=work)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "first" / "model").exists()


def test_a_run_that_was_copied_does_not_train_again(tmp_path: Path) -> None:
    made: list[int] = []

    def train(path: Path) -> None:
        made.append(1)
        model_folder(path)

    for place in ("old", "new"):
        if place == "new":
            shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copyfile)
        with open_run(tmp_path / place) as run:
            student = run.stage("student", "student", inputs={"k": 1}, work=train).path
            run.stage("answers", "answers.jsonl", inputs=model_inputs(ModelConfig(model=str(student))), work=Work())
            assert run.skipped == (["student", "answers"] if place == "new" else [])
    assert made == [1]


# --- what the user puts into a run's directory


def test_a_file_of_the_users_in_the_students_directory_stays(tmp_path: Path) -> None:
    made, heard = [], []

    class Ear(ProgressReporter):
        def note(self, text: str) -> None:
            heard.append(text)

    def train(path: Path) -> None:
        made.append(1)
        model_folder(path)

    def run_it(setting: int) -> None:
        with open_run(tmp_path / "run", watch=Ear()) as run:
            run.stage("student", "student", inputs={"train": {"lr": setting}}, work=train)

    run_it(1)
    mine = tmp_path / "run" / "student" / "student-q4.gguf"
    mine.write_text("hours of work")
    run_it(1)
    assert made == [1]
    with pytest.raises(UserError, match=r"contains files .* student-q4\.gguf"):
        run_it(2)
    assert mine.read_text() == "hours of work"
    assert (mine.parent / "model.safetensors").exists()
    mine.unlink()
    run_it(2)
    assert made == [1, 1]
    assert "running again with changed inputs: train.lr (1, now 2)" in heard


def test_a_foreign_work_folder_in_a_run_is_not_removed(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.stage("rows", "rows.jsonl", inputs={"k": 1}, work=Work())
    (tmp_path / "rows.jsonl.work").mkdir()
    (tmp_path / "rows.jsonl.work" / "thesis.txt").write_text("years of work")
    with open_run(tmp_path) as run, pytest.raises(UserError, match=r"rows\.jsonl\.work .* was not created by this lab"):
        run.stage("rows", "rows.jsonl", inputs={"k": 2}, work=Work())
    assert (tmp_path / "rows.jsonl.work" / "thesis.txt").read_text() == "years of work"
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [{"row": 0}]


@pytest.mark.parametrize("name", ["summary.json", "report.html", "report.md", "training.json"])
def test_a_directory_with_results_of_someone_else_is_no_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} exists, but .* is not a run directory"):
        open_run(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_two_runs_do_not_write_one_student(tmp_path: Path) -> None:
    out = tmp_path / "student"

    def other(path: Path) -> None:
        with open_run(tmp_path / "b") as second, pytest.raises(UserError, match="written by another process"):
            second.stage("student", str(out), inputs={}, work=Work())
        model_folder(path)

    with open_run(tmp_path / "a") as first:
        first.stage("student", str(out), inputs={}, work=other)
    assert not list(tmp_path.glob(".*.lock"))
