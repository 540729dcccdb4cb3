"""Faults as a user meets them: each ends in exit 2 with the place and the remedy, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import write_summary
from distill_lab.files.jsonl import write_jsonl
from distill_lab.grading.graders import metric_of
from tests.helpers import finished_run, tiny_prompts
from tests.hostile_server import HostileServer, Reply, answer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs the permissions of POSIX")]
Distill = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Distill:
    """The command's exit code and all that it printed."""

    def distill(*arguments: Any) -> tuple[int, str]:
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as ended:  # from the reader of flags
            code = int(str(ended.code))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return distill


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    write_jsonl(path, ({"question": f"{n} plus 1?", "answer": str(n + 1)} for n in range(3)))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    prompt, completion = [{"role": "user", "content": "say 1"}], [{"role": "assistant", "content": "1"}]
    write_jsonl(path, [{"prompt": prompt, "completion": completion}] * 8)
    return path


# --- senseless settings

SETTINGS = (
    "--train.max-steps 0", "--train.max-steps -5", "--train.max-steps 99999999999999999999", "--train.seed -1",
    f"--train.seed {2**70}", "--train.num-epochs inf", "--train.num-epochs nan", "--train.num-epochs 1e30",
    "--train.num-epochs 0", "--train.learning-rate inf", "--train.learning-rate nan", "--train.learning-rate -1",
    "--train.weight-decay inf", "--train.max-grad-norm inf", "--train.save-steps inf", "--train.eval-steps nan",
    "--train.lr-scheduler-type nope", "--train.optim nope", "--train.report-to nope", f"--train.max-length {10**30}",
    f"--train.tokens-per-batch {10**30}", f"--train.gradient-accumulation-steps {10**9}", f"--train.lora.r {10**9}",
    f"--train.lora.r 4 --train.lora.alpha {10**400}", "--train.num-processes 1000000", "--train.objective nope",
    "--train.objective-settings x=inf", "--train.warmup-ratio nan",
)  # fmt: skip


@pytest.mark.parametrize("flags", SETTINGS)
def test_senseless_training_settings(flags: str, rows: Path, tmp_path: Path, run: Distill) -> None:
    before = sorted(tmp_path.iterdir())
    code, printed = run("train", "--student", "tiny:student", "--rows", rows, "--out", tmp_path / "s", *flags.split())
    assert (code, "Traceback" in printed) == (2, False), printed
    setting = flags.split("--train.")[-1].split()[0].rpartition(".")[2]
    assert setting in printed or setting.replace("-", "_") in printed
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "flags",
    [
        "--sampling.seed -1", f"--sampling.seed {2**64}", "--sampling.temperature inf", "--sampling.temperature nan",
        "--sampling.top-p nan", f"--sampling.max-new-tokens {10**40}", f"--sampling.num-samples {10**9}",
        "--data.split train[:99999999999999999999]", f"--data.split train[:{'9' * 5000}]", "--data.split train[%:5]",
        "--engine.base-url http://a\tb/v1", "--engine.base-url http://a\x1b[31m/v1", "--engine.base-url http://a\x7f/",
        "--engine.base-url http://\u202ehost/v1", "--engine.timeout-s inf", "--engine.batch-size 99999999999999999999",
        "--model.revision main", "--instruction a\0b", "--out .", "--out ..", "--out=", "--cot=",
    ],
)  # fmt: skip
def test_senseless_settings_of_generation(flags: str, data: Path, tmp_path: Path, run: Distill) -> None:
    before = sorted(tmp_path.iterdir())
    given = flags.split(" ", 1) if not flags.endswith("=") else [flags]
    out = [] if "--out" in flags else ["--out", tmp_path / "out.jsonl"]
    code, printed = run("generate", "--model", "tiny:student", "--data", data, *out, *given)
    assert (code, "Traceback" in printed) == (2, False), printed
    assert not {"\x1b", "\x7f", "\u202e"} & set(printed)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("flag", ["--run", "--config", "--preset"])
def test_an_empty_value_is_not_the_folder_the_user_is_in(flag: str, run: Distill) -> None:
    for given in ([flag, ""], [f"{flag}="], [flag, "  "]):
        code, printed = run("system1", *given)
        assert (code, f"{flag} is empty" in printed) == (2, True), printed


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]: 3\n", "{a: 1}: 2\n", "a: " + "[" * 3000 + "]" * 3000 + "\n", "num_test: " + "9" * 5000 + "\n", "1: 2\n",
        "train:\n  2: 3\n", "null: 1\n", "a: !!python/object/apply:os.system [id]\n", "a: &x [*x]\n", "a: \x07\n", "? \n",
        "train: {seed: -1}\n", "train: {num_epochs: .inf}\n", "train: {learning_rate: .nan}\n", 'out: "a\\0b"\n',
        "train: 7\n", "data: [1]\n", "a: 0x\n", "\xff: 1\n", "num_test: 1e999\n", "%YAML 9.9\n---\na: 1\n",
    ],
)  # fmt: skip
def test_senseless_yaml(text: str, tmp_path: Path, run: Distill) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    code, printed = run("system1", "--preset", "tiny", "--config", file, "--run", tmp_path / "run")
    assert (code, "Traceback" in printed, str(file) in printed) == (2, False, True), printed
    assert not (tmp_path / "run").exists()


# --- a run's place

GOOD = {"key": "k", "at": "data.jsonl", "status": "done", "seconds": 1.0, "output": "x", "counts": None}


@pytest.mark.parametrize("place", ["f", "f/run", "a" * 300, "b" * 5000, "/proc/1/x", "/dev/null"])
def test_a_run_directory_that_cannot_be(place: str, tmp_path: Path, run: Distill) -> None:
    (tmp_path / "f").write_text("mine")
    code, printed = run("system1", "--preset", "tiny", "--run", place if place[0] == "/" else tmp_path / place)
    assert (code, "Traceback" in printed, "cannot be written" in printed) == (2, False, True), printed
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize(
    "stages",
    [
        None, [], {"data": None}, {"data": [1]}, {"data": {}}, {"data": {**GOOD, "key": 7}}, {"data": {**GOOD, "at": None}},
        {"data": {**GOOD, "seconds": "s"}}, {"data": {**GOOD, "seconds": -1}}, {"data": {**GOOD, "files": 7}},
        {"data": {**GOOD, "counts": {"rows_in": 3, "kept": 1, "dropped": {}}}}, {"data": {**GOOD, "counts": [3]}},
        {"data": {**GOOD, "counts": {"rows_in": 3, "kept": -1, "dropped": {"x": 4}}}}, {"data": {**GOOD, "status": "new"}},
        {name: value for name, value in GOOD.items() if name != "output"},
    ],
)  # fmt: skip
def test_a_run_json_of_odd_shape_is_refused_by_name(stages: Any, tmp_path: Path, run: Distill) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "system1", "stages": stages}))
    (tmp_path / "data.jsonl").write_text("mine")
    code, printed = run("system1", "--preset", "tiny", "--run", tmp_path)
    assert (code, str(tmp_path / "run.json") in printed) == (2, True), printed
    assert (tmp_path / "data.jsonl").read_text() == "mine"


def test_one_bad_run_hides_no_other(tmp_path: Path, run: Distill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad: dict[str, bytes] = {
        "empty": b"", "deep": b"[" * 100_000, "binary": b"\xff", "list": b"[]", "stages": b'{"recipe": "r", "stages": 1}'
    }  # fmt: skip
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    (tmp_path / "folder" / "run.json").mkdir(parents=True)
    for name in ("good", "[red]x", "y[", "a\x1b[31mb", "[bold]z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"recipe": "[x] \x1b[2J", "stages": {"data": GOOD}}))
    (tmp_path / "good" / "summary.json").write_text('{"retention": "x"}')
    code, printed = run("runs", "--folder", ".")
    printed = "".join(printed.split())
    assert code == 0
    assert "\x1b" not in printed
    for name in ("[red]x", "y[", "a[31mb", "[bold]z", "[x]"):
        assert name in printed
    for name in (*bad, "folder"):
        assert f"{name}/run.json:" in printed
    assert "good/summary.jsonisofanearlierversion" in printed


# --- permissions


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who may not do everything: root's permissions are not checked."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shut() -> Iterator[Path]:
    """A folder that may be read, and not written; pytest's own folders may only be entered by their owner."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "secret.jsonl").write_text('{"question": "1", "answer": "1"}\n')
        (folder / "run").mkdir()
        (folder / "run" / "run.json").write_text('{"recipe": "system1", "stages": {}, "versions": {}, "config": {}}')
        (folder / "run" / "summary.json").write_text('{"verdict": {}, "gain_ci95": null}')
        (folder / "secret.jsonl").chmod(0o000)
        (folder / "run").chmod(0o555)
        folder.chmod(0o555)
        yield folder
        for path in (folder, folder / "run"):
            path.chmod(0o755)


def test_what_a_user_may_not_write_is_named(shut: Path, data: Path, rows: Path, run: Distill) -> None:
    with tempfile.TemporaryDirectory() as name:  # where nobody may read
        Path(name).chmod(0o755)
        for path in (data, rows):
            shutil.copy(path, name)
            (Path(name) / path.name).chmod(0o644)
        readable, training = Path(name) / data.name, Path(name) / rows.name
        commands = [
            (["system1", "--preset", "tiny", "--run", shut / "new"], shut),
            (["system1", "--preset", "tiny", "--run", shut / "run"], shut / "run"),
            (["train", "--student", "tiny:student", "--rows", training, "--out", shut / "s"], shut),
            (["generate", "--model", "tiny:student", "--data", readable, "--out", shut / "o.jsonl"], shut),
            (["eval", "--model", "tiny:student", "--data", readable, "--out", shut / "o.jsonl"], shut),
            (["merge", "--adapter", "tiny:student", "--out", shut / "m"], shut),
            (["grade", "--prompts", readable, "--completions", readable, "--out", shut / "g.jsonl"], shut),
        ]
        with nobody():
            for command, place in commands:
                code, printed = run(*command)
                assert (code, "Traceback" in printed) == (2, False), printed
                assert str(place) in printed
                assert "choose another" in printed


def test_a_report_that_may_not_be_written_is_named(run: Distill) -> None:
    with tempfile.TemporaryDirectory() as name:  # where nobody may read
        folder = finished_run(Path(name) / "run", rows=tiny_prompts(3))
        scores = {"student": read_score(folder / "eval" / "student.jsonl")}
        write_summary(folder / "summary.json", summarize("system1", 3, scores=scores, metric=metric_of("exact")))
        assert run("report", "--run", folder)[0] == 0
        (folder / "report.html").unlink()
        places = [Path(name), folder, *folder.rglob("*")]
        for place in places:
            place.chmod(0o555 if place.is_dir() else 0o444)
        try:
            with nobody():
                code, printed = run("report", "--run", folder)
        finally:
            for place in places:
                place.chmod(0o755)
        assert (code, "Traceback" in printed, "report.html" in printed) == (2, False, True), printed


def test_what_a_user_may_not_read_is_blamed_and_not_the_output(shut: Path, tmp_path: Path, run: Distill) -> None:
    with tempfile.TemporaryDirectory() as name, nobody():
        pass
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        out = Path(name) / "out.jsonl"
        with nobody():
            code, printed = run("generate", "--model", "tiny:student", "--data", shut / "secret.jsonl", "--out", out)
        assert (code, str(shut / "secret.jsonl") in printed) == (2, True), printed
        assert "cannot be written" not in printed


# --- a full disk


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: like a full disk, and for root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 20_000, 60_000])
def test_a_disk_that_fills_while_training(
    num_bytes: int, rows: Path, tmp_path: Path, run: Distill, random_model: Callable[..., Path]
) -> None:
    student = random_model(hidden=32, layers=1)
    command = ["train", "--student", student, "--rows", rows, "--out", tmp_path / "student", "--train.max-steps", "2"]
    command += ["--train.max-length", "64", "--train.save-steps", "1", "--train.validation-fraction", "0"]
    with room_for(num_bytes):
        code, printed = run(*command)
    assert (code, "Traceback" in printed, "free some disk space" in printed) == (2, False, True), printed
    code, printed = run(*command)
    assert (code, (tmp_path / "student" / "model.safetensors").exists()) == (0, True), printed


@pytest.mark.parametrize("num_bytes", [0, 800, 3_000])
def test_a_disk_that_fills_in_a_recipe(num_bytes: int, tmp_path: Path, run: Distill) -> None:
    command = ["system1", "--preset", "tiny", "--run", tmp_path / "run", "--data.split", "distill[:0]"]
    if num_bytes:
        command[-1] = "distill[:200]"
    with room_for(num_bytes):
        code, printed = run(*command)
    assert (code, "Traceback" in printed, "free some disk space" in printed) == (2, False, True), printed
    code, printed = run(*command[:-1], "distill[:0]")
    assert "No data for System 1 distillation" in printed


# --- text from outside, and who may read what is written


def test_what_a_server_says_cannot_steer_the_terminal(data: Path, tmp_path: Path, run: Distill) -> None:
    bad = "\x1b[31mred\x1b]0;title\x07 [/x] \u202e"
    replies = [
        Reply(status=401, body={"error": {"message": bad}}),
        Reply(status=307, headers={"Location": "http://a/\x1b[31m"}),
        Reply(status=400, body={"error": bad}),
        Reply(raw=b"HTTP/1.1 \x1b[31m\r\n\r\n"),
    ]
    for number, reply in enumerate(replies):
        with HostileServer(rule=lambda request, reply=reply: reply) as server:
            more = ["--engine.base-url", server.url, "--out", tmp_path / f"{number}.jsonl", "--engine.max-retries", "0"]
            code, printed = run("generate", "--model", "openai:m", "--data", data, *more)
        assert (code, "Traceback" in printed) == (2, False), printed
        assert not {"\x1b", "\x07", "\u202e"} & set(printed), printed


def test_names_of_files_models_and_fields_cannot_steer_the_terminal(tmp_path: Path, run: Distill) -> None:
    field = tmp_path / "f.jsonl"
    write_jsonl(field, [{"\x1b[31mquestion\x07": "1"}])
    for command in (
        ["generate", "--model", "tiny:student", "--data", field, "--out", tmp_path / "o.jsonl"],
        ["generate", "--model", "a\x1b[31mb", "--data", field, "--out", tmp_path / "o.jsonl"],
        ["generate", "--model", "tiny:student", "--data", tmp_path / "no\x1b[31m.jsonl", "--out", tmp_path / "o.jsonl"],
        ["grade", "--prompts", "\x1b[31m", "--completions", field, "--out", tmp_path / "o.jsonl"],
        ["report", "--run", tmp_path / "\x1b[31m"],
    ):
        code, printed = run(*command)
        assert (code, "Traceback" in printed) == (2, False), printed
        assert not {"\x1b", "\x07"} & set(printed), printed


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_prompts_answers_and_cache_are_their_owners_only(
    umask: int, data: Path, tmp_path: Path, run: Distill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "new" / "cache"))
    before = os.umask(umask)
    try:
        with HostileServer() as server:
            flags = ["--engine.base-url", server.url, "--out", tmp_path / "new" / "o.jsonl"]
            flags += ["--cot", tmp_path / "new" / "c.jsonl"]
            assert run("generate", "--model", "openai:m", "--data", data, *flags)[0] == 0
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(
        ("o.jsonl", "o.prompts.jsonl", "o.jsonl.key.json", "c.jsonl", "requests.sqlite"), "0o600"
    )


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_answers_that_all_failed_are_not_a_success(command: str, data: Path, tmp_path: Path, run: Distill) -> None:
    arguments = [command, "--model", "openai:m", "--data", data, "--out", tmp_path / "o.jsonl", "--engine.base-url"]
    with HostileServer(rule=lambda request: Reply(status=400, body={"error": "too long"})) as server:
        code, printed = run(*arguments, server.url)
        assert (code, "all 3 answers failed" in printed, "too long" in printed) == (2, True, True), printed
        server.rule = lambda request: Reply(body=answer("1"))
        assert run(*arguments, server.url)[0] == 0
