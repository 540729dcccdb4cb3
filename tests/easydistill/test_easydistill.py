"""EasyDistill's black-box jobs, whole, on the tiny family."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from distill_lab.easydistill.job import run, run_directory
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import read_jsonl
from scripts.random_qwen import build
from tests.easydistill.jobs import ROWS, WORDS, Log, black_box
from tests.helpers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("instructions")]


def labelled() -> list[dict[str, Any]]:
    return json.loads(Path("out.json").read_text())


def test_local_job_labels_trains_and_does_nothing_twice() -> None:
    log = Log()
    assert run(black_box(), watch=log) == Path("student").absolute()
    rows = labelled()
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ROWS]
    assert rows[0]["output"] == "CAT, AXE"
    assert set(rows[0]) == {"instruction", "input", "output"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in Path("student").iterdir()}
    assert any("kd.jinja" not in note and "dataset.template is not used" in note for note in log.notes)
    training = json.loads((run_directory("student") / "training.json").read_text())
    assert training["num_rows"] == 24
    weights, answers = Path("student/model.safetensors").stat().st_mtime_ns, Path("out.json").stat().st_mtime_ns
    for again in (
        False,
        True,
        False,
    ):  # asked for by this teacher already: --relabel changes nothing from the second on
        log = Log()
        run(black_box(), relabel=again, watch=log)
        if not again:
            assert log.stages == []
    assert Path("student/model.safetensors").stat().st_mtime_ns == weights
    assert Path("out.json").stat().st_mtime_ns >= answers


def test_prepared_answers_stay_and_only_missing_ones_are_asked() -> None:
    mine = [{"instruction": ROWS[3]["instruction"], "input": "", "output": "my own words", "note": "keep me"}]
    other = {"instruction": "Something else", "output": "to be kept as well"}
    empty = {"instruction": ROWS[0]["instruction"], "output": ""}
    Path("out.json").write_text(json.dumps([*mine, other, empty]))
    run(black_box())
    rows = labelled()
    assert rows[3] == mine[0]
    assert rows[0]["output"] == "CAT, AXE"
    assert rows[24:] == [other]
    directory = run_directory("student")
    assert len(list(read_jsonl(directory / "completions.jsonl"))) == 23
    trained = [row["completion"][0]["content"] for row in read_jsonl(directory / "train.jsonl")]
    assert "my own words" in trained
    assert other["output"] not in trained


def test_a_whole_set_of_answers_needs_no_teacher_and_relabel_replaces_it() -> None:
    own = json.dumps([{**row, "output": "mine"} for row in ROWS])
    Path("out.json").write_text(own)
    log = Log()
    run(black_box(models__teacher="no/such-teacher"), watch=log)
    assert Path("out.json").read_text() == own
    assert any("the teacher is not used (--relabel generates new answers)" in note for note in log.notes)
    run(black_box(), relabel=True)
    assert labelled()[0]["output"] == "CAT, AXE"
    answers = Path("out.json").read_bytes()
    run(black_box(inference__seed=8))  # another teacher or other sampling: what is there counts as prepared
    assert Path("out.json").read_bytes() == answers


def test_what_a_job_needs_is_checked_before_anything_is_written() -> None:
    Path("in.json").write_text("[]")
    with pytest.raises(NoData, match=r"in\.json: no rows"):
        run(black_box())
    Path("in.json").write_text('[{"instruction": "a"},\n{"instructio": "b"}]')
    with pytest.raises(UserError, match="Invalid student model: no/such-model\nExample: Qwen/Qwen2"):
        run(black_box(models__student="no/such-model/"))
    Path("student").mkdir()
    with pytest.raises(UserError, match="student already exists and was not created by this run"):
        run(black_box())
    with pytest.raises(UserError, match=r"training\.output_dir: give the student a separate directory"):
        run(black_box(training__output_dir="."))
    with pytest.raises(UserError, match=r"out\.txt must end in \.json"):
        run(black_box(dataset__labeled_path="out.txt"))
    with pytest.raises(UserError, match="this job has no teacher"):
        run(black_box("kd_sft"), relabel=True)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.json", "job.json", "student"]
    run_directory("student").mkdir()
    Path("student.run/run.json").write_text('{"recipe": "easydistill", "config": {"student": 1}, "stages": {}}')
    with pytest.raises(UserError, match="student already exists and was not created by this run"):
        run(black_box())
    Path("student").rmdir()
    with pytest.raises(DataError, match=r"in\.json:2: row 1"):
        run(black_box())


def test_train_only_learns_from_labeled_path_and_counts_what_it_leaves_out() -> None:
    rows = [{**row, "output": "yes"} for row in ROWS]
    rows[5]["output"] = ""
    rows[6]["output"] = "word " * 300
    Path("out.json").write_text(json.dumps(rows))
    run(
        black_box(
            "kd_sft", dataset__instruction_path=None, models__teacher=None, inference=None, training__max_length=128
        )
    )
    training = json.loads((run_directory("student") / "training.json").read_text())
    assert training["num_rows"] == 22
    assert training["dropped"] == {"longer than max_length": 1}
    stages = json.loads((run_directory("student") / "run.json").read_text())["stages"]
    assert stages["training set"]["counts"]["dropped"] == {"empty": 1}
    assert list(stages) == ["prompts", "training set", "training settings", "student"]


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server with one model, that wants a key and answers in capitals; and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "loud"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append(body)
            message = {"role": "assistant", "content": body["messages"][-1]["content"].upper()}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self.reply({"model": body["model"], "choices": [choice], "usage": {"completion_tokens": 5}})

        def reply(self, data: dict[str, Any]) -> None:
            known = self.headers["Authorization"] == "Bearer a-secret-of-mine"
            text = json.dumps(data if known else {"error": {"message": "wrong key"}}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/v1", sent
        web.shutdown()
        thread.join()


def test_api_job(server: tuple[str, list[dict[str, Any]]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "somebody-elses")
    url, sent = server
    inference = {"base_url": url, "api_key": "a-secret-of-mine", "stream": True, "max_new_tokens": 32}
    inference["system_prompt"] = "Be loud."
    run(black_box("kd_black_box_api", inference=inference, models__teacher=None))
    assert [row["output"] for row in labelled()] == [row["instruction"].upper() for row in ROWS]
    assert len(sent) == len(ROWS)
    assert {body["model"] for body in sent} == {"loud"}
    assert {body["messages"][0]["content"] for body in sent} == {"Be loud."}
    prompts = [row["prompt"] for row in read_jsonl(run_directory("student") / "train.jsonl")]
    assert all([message["role"] for message in prompt] == ["user"] for prompt in prompts)
    assert os.environ["OPENAI_API_KEY"] == "somebody-elses"
    Path("job.json").unlink()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if b"a-secret-of-mine" in path.read_bytes()]
    Path("out.json").unlink()
    wrong = {**inference, "api_key": ""}
    with pytest.raises(UserError, match="returned HTTP 401 for the list of its models; check inference"):
        run(black_box("kd_black_box_api", inference=wrong, models__teacher=None, dataset__labeled_path="other.json"))
    with pytest.raises(UserError, match=r"job\.json: inference\.base_url: the server's address does not start"):
        run(black_box("kd_black_box_api", inference={"base_url": "localhost:8000"}))


def distill(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distill_lab.cli", "run", *arguments]


def test_exit_codes_tell_the_truth() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    bad = subprocess.run(distill("absent.json"), env=environment, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "absent.json: No such file or directory; give the path" in bad.stderr
    # A run that talks of errors all the time, and ends well.
    Path("error.json").write_text(json.dumps([{"instruction": "Error: failed", "output": "error"}] * 4))
    path = black_box("kd_sft", dataset__labeled_path="error.json", training__output_dir="error")
    good = subprocess.run(distill(str(path)), env=environment, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert "error" in good.stdout
    assert Path("error/model.safetensors").exists()


def test_a_killed_job_goes_on_where_it_stopped() -> None:
    rows = [{"instruction": f"Reverse this list: {a}, {b}, {c}"} for a in WORDS for b in WORDS[:4] for c in WORDS[:4]]
    Path("in.json").write_text(json.dumps(rows))
    # The answers come in several batches, so that there is something to lose.
    code = (
        "import sys; from distill_lab.easydistill import job; from distill_lab.config import EngineConfig; "
        "read = job.read_job; import dataclasses; "
        "job.read_job = lambda path: dataclasses.replace(read(path), engine=EngineConfig(batch_size=8)); "
        f"job.run({str(black_box(training__max_steps=2))!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    completions = run_directory("student") / "completions.jsonl"
    while not (completions.exists() and completions.read_bytes().count(b"\n") >= 32):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("out.json").exists()
    kept = completions.read_bytes()
    whole = kept[: kept.rindex(b"\n") + 1]
    assert 16 <= whole.count(b"\n") < len(rows)
    run(Path("job.json"))
    assert completions.read_bytes().startswith(whole)
    ids = [row["id"] for row in read_jsonl(completions)]
    assert len(ids) == len(set(ids)) == len(rows)
    assert len(labelled()) == len(rows)


def test_easydistills_own_labelled_rows_train_a_qwen(shared_data: Path) -> None:
    build(shared_data / "tokenizers" / "qwen2.5", Path("qwen"), hidden=64, layers=2)
    rows = json.loads((shared_data / "cot" / "easydistill_BC_init_math.json").read_text(encoding="utf-8"))[:12]
    Path("own.json").write_text(json.dumps(rows))
    changes: dict[str, Any] = {"models__student": "qwen", "training__max_length": 1024, "training__max_steps": 2}
    changes["training__per_device_train_batch_size"] = 2
    run(black_box("kd_black_box_train_only", dataset__labeled_path="own.json", **changes))
    training = json.loads((run_directory("student") / "training.json").read_text())
    assert training["num_rows"] + sum(training["dropped"].values()) == 12
    assert training["num_rows"] >= 6
    assert training["steps"] == 2
