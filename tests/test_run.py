"""run.py: files that survive a kill, the lock, and stages that are skipped, redone or gone on with."""

from __future__ import annotations

import hashlib
import json
import math
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
from distill_lab.errors import DataError, UserError
from distill_lab.files import fingerprints
from distill_lab.files.jsonl import JsonlAppender, atomic_path, read_jsonl, write_json, write_jsonl
from distill_lab.generation.model_identity import model_inputs
from distill_lab.run import Run, fingerprint
from distill_lab.types import Counts
from tests.helpers import model_folder

ROWS = [{"id": "a", "text": "你好 🙂\u2028\n"}, {"id": "b", "n": 1.5}]


# --- atomic writes


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, ROWS) == 2
    assert list(read_jsonl(path)) == ROWS
    assert path.read_bytes().count(b"\n") == 2
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_half_an_emoji_comes_back(tmp_path: Path) -> None:
    row = {"text": "cut \ud83d"}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with JsonlAppender(tmp_path / "rows.jsonl") as appender:
        appender.append([row])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [row, row]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(path, [{"a": 1}, {"a": math.nan}])
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("half\ud83d", encoding="utf-8")
    assert list(read_jsonl(path)) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_nan_is_not_appended(tmp_path: Path) -> None:
    with JsonlAppender(tmp_path / "rows.jsonl") as appender:
        appender.append(ROWS)
        with pytest.raises(ValueError, match="JSON compliant"):
            appender.append([{"a": 1}, {"a": math.inf}])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == ROWS


def test_json_is_readable_and_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "é"})
    write_json(tmp_path / "x.json", {"b": 1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"b": 1}


# --- reading


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\r\n\n' + line + b"\n")
    rows = read_jsonl(path)
    assert next(rows) == {"a": 0}
    with pytest.raises(DataError, match=reason) as caught:
        next(rows)
    assert (caught.value.source, caught.value.line) == (str(path), 3)


# --- resuming an appended file


@pytest.mark.parametrize("torn", [b"", b'{"id"', b"\x00" * 70_000, b'{"id": "' + "é".encode() * 100_000])
@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, whole: int, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS[:whole])
    with path.open("ab") as file:
        file.write(torn)
    with JsonlAppender(path) as appender:
        assert list(read_jsonl(path)) == ROWS[:whole]
        appender.append([{"id": "z"}])
    assert list(read_jsonl(path)) == [*ROWS[:whole], {"id": "z"}]


def test_every_cut_through_a_file_resumes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with JsonlAppender(path) as appender:
            appender.append([{"id": "z"}])
        assert list(read_jsonl(path)) == [*ROWS[: data[:length].count(b"\n")], {"id": "z"}]


def test_appended_rows_are_on_disk_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = """
import sys
from pathlib import Path
from distill_lab.files.jsonl import JsonlAppender
appender = JsonlAppender(Path(sys.argv[1]))
number = 0
while True:
    appender.append([{"n": number}])
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    with JsonlAppender(path) as appender:
        appender.append([{"n": -1}])
    found = [row["n"] for row in read_jsonl(path)]
    assert said == list(range(20))
    assert found[:20] == said
    assert found == [*range(len(found) - 1), -1]


# --- fingerprints


def test_fingerprints_tell_apart_what_differs(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"x" * 3_000_000)
    folder.mkdir()
    values: list[Any] = [{}, [], None, 0, "0", {"a": 1, "b": 2}, {"a": 1}, {"a": [1]}, file, folder, tmp_path / "none"]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"epochs": 4}) == fingerprint({"epochs": 4.0}) != fingerprint({"epochs": 4.5})
    assert (
        fingerprint(file)
        == hashlib.sha256(json.dumps(hashlib.sha256(file.read_bytes()).hexdigest()).encode()).hexdigest()
    )

    before = fingerprint(file), fingerprint(folder)
    file.touch()
    assert fingerprint(file) == before[0]
    file.write_bytes(b"x" * 2_999_999 + b"y")
    (folder / "new").write_text("1")
    assert fingerprint(file) != before[0]
    assert fingerprint(folder) != before[1]


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


# --- directories count by content


def test_a_copy_with_other_times_is_the_same_directory(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    copied = Path(shutil.copytree(model, tmp_path / "copied", copy_function=shutil.copyfile))
    for path in copied.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(copied) == fingerprint(model)
    other = model_folder(tmp_path / "other", b"w" * 999 + b"v")
    stat = (model / "model.safetensors").stat()
    os.utime(other / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(other) != fingerprint(model)


def test_what_is_no_part_of_a_model_does_not_change_its_fingerprint(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    before = fingerprint(model)
    for name in ("student-q4.gguf", "notes.txt", "README.md", ".key.json", "mine.py"):
        (model / name).write_text("1")
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_model.safetensors").write_text("1")
    assert fingerprint(model) == before
    for name in ("chat_template.jinja", "generation_config.json", "added_tokens.json", "model-2.safetensors"):
        (model / name).write_text("1")
        changed = fingerprint(model)
        assert changed != before, name
        before = changed
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Model"}}')
    before = fingerprint(model)
    (model / "mine.py").write_text("2")
    assert fingerprint(model) != before


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "LARGE", 1000)
    monkeypatch.setattr(fingerprints, "SETTLED_S", -1.0)
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "_loaded", None)
    model = model_folder(tmp_path / "model")
    before = fingerprint(model)
    read: list[str] = []
    monkeypatch.setattr(fingerprints.hashlib, "sha256", Counting(hashlib.sha256, read))
    assert fingerprint(model) == before
    assert "w" * 1000 not in read
    monkeypatch.setattr(fingerprints, "_known", {})  # as in another process
    monkeypatch.setattr(fingerprints, "_loaded", None)
    assert fingerprint(model) == before
    assert "w" * 1000 not in read
    stat = (model / "model.safetensors").stat()
    (model / "model.safetensors").write_bytes(b"v" * 1000)
    os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(model) != before
    assert "v" * 1000 in read
    (tmp_path / "cache" / "digests.json").write_text("[1")
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "_loaded", None)
    (model / "model.safetensors").write_bytes(b"w" * 1000)
    assert fingerprint(model) == before


class Counting:
    """A hash function that notes what it is given."""

    def __init__(self, function: Any, read: list[str]) -> None:
        self.function, self.read = function, read

    def __call__(self, content: bytes = b"") -> Any:
        counting, inner = self, self.function(content)

        class Noting:
            def update(self, block: bytes) -> None:
                counting.read.append(block.decode())
                inner.update(block)

            def hexdigest(self) -> str:
                return inner.hexdigest()

        return Noting()


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o000])
def test_new_files_are_their_owners_only_and_replaced_ones_keep_their_permissions(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_jsonl(tmp_path / "b.jsonl", ROWS)
        with JsonlAppender(tmp_path / "c.jsonl") as appender:
            appender.append(ROWS)
        write_json(tmp_path / "shared.json", {})
        (tmp_path / "shared.json").chmod(0o640)
        write_json(tmp_path / "shared.json", {"new": 1})
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"a.json": "0o600", "b.jsonl": "0o600", "c.jsonl": "0o600", "shared.json": "0o640"}
