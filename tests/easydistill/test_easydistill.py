"""EasyDistill configs: what is refused and how it is said, the translation, and whole jobs on the tiny family."""

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

from distill_lab.activity import ProgressReporter
from distill_lab.chat import answer_text
from distill_lab.easydistill.config import read_job
from distill_lab.easydistill.job import run, run_directory
from distill_lab.easydistill.training import Training, train_config
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.train.plan import make_plan
from distill_lab.training_data.training_set import instruction_row
from scripts.random_qwen import build
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

WORDS = ["cat", "dog", "red", "hat", "fox", "saw", "axe", "kiwi", "pear", "lion", "boot", "duck"]
ROWS = [{"instruction": f"Make this upper case: {a}, {b}"} for a in WORDS[:6] for b in WORDS[6:10]]


class Log(ProgressReporter):
    """Everything a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, title: str) -> None:
        self.stages.append(title)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own with `in.json`."""
    monkeypatch.chdir(tmp_path)
    Path("in.json").write_text(json.dumps(ROWS))
    return tmp_path


def config(job_type: str = "kd_black_box_local", /, **changes: Any) -> Path:
    """A config of 24 instructions for the tiny family; `training__max_steps=3` changes one key, None removes it."""
    data: dict[str, Any] = {
        "job_type": job_type,
        "dataset": {"instruction_path": "in.json", "labeled_path": "out.json", "template": "kd.jinja", "seed": 42},
        "inference": {"temperature": 0, "seed": 7, "max_new_tokens": 24, "trust_remote_code": False},
        "models": {"teacher": "tiny:teacher", "student": "tiny:student"},
        "training": {"output_dir": "student", "num_train_epochs": 1, "learning_rate": 1e-3, "fp16": True},
    }
    for place, value in changes.items():
        *sections, key = place.split("__")
        section = data
        for name in sections:
            section = section[name]
        section[key] = value
        if value is None:
            del section[key]
    path = Path("job.json")
    path.write_text(json.dumps(data))
    return path


def labelled() -> list[dict[str, Any]]:
    return json.loads(Path("out.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job_type": None}, "job_type: missing; give one of kd_black_box_local"),
        ({"job_type": "kd_black_box_locl"}, "did you mean kd_black_box_local?"),
        ({"job_type": "instruction_expansion_ap"}, "did you mean instruction_expansion_api?"),
        ({"dataset__instruction_path": None}, "dataset.instruction_path: missing"),
        ({"dataset__labeled_path": None}, "dataset.labeled_path: missing"),
        ({"dataset__labelled_path": "x"}, "dataset.labelled_path: no such key"),
        ({"dataset__logits_path": "x"}, "dataset.logits_path: belongs to the white-box jobs"),
        ({"distillation": {"kd_ratio": 0.1}}, "distillation: belongs to the white-box jobs"),
        ({"inference__temperature": -1}, "inference.temperature: Input should be greater"),
        ({"inference__base_url": "http://x"}, "inference.base_url: no such key"),
        ({"models__teacher": None}, "models.teacher: missing"),
        ({"models__student": ""}, "models.student"),
        ({"training": None}, "training: missing"),
        ({"training__output_dir": None}, "training.output_dir: missing"),
        ({"training__learning_rate": "fast"}, "training.learning_rate: Input should be a valid number"),
        ({"training__learning_rat": 1e-5}, "training.learning_rat: no such setting; did you mean learning_rate?"),
        ({"training__label_smoothing_factor": 0.1}, "training.label_smoothing_factor: the lab's trainer has no such"),
        ({"training__completion_only_loss": False}, "training.completion_only_loss: the lab's trainer has no such"),
        ({"training__optim": "adafactor"}, "training.optim: the lab's trainer has no such"),
        (
            {"training__lr_scheduler_type": "cosin"},
            "training.lr_scheduler_type: no scheduler 'cosin'; choose from linear",
        ),
        ({"training__max_length": 512, "training__max_seq_length": 1024}, "max_seq_length differ"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(config(**changes))
    assert str(caught.value).startswith("job.json: ")
    assert message in str(caught.value)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.json", "job.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"job_type": }', "job.json:2: not JSON"),
        ("[]", "expected one JSON object, found list"),
        ('{"job_type": "a", "job_type": "b"}', "duplicate key 'job_type' in an object"),
        ('{"job_type": NaN}', "NaN is not JSON"),
        ("job_type: kd_sft", "an EasyDistill 1.0 config is JSON"),
    ],
)
def test_files_that_are_no_config(text: str, message: str) -> None:
    Path("job.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_job(Path("job.json"))
    with pytest.raises(UserError, match="give the path of an EasyDistill config"):
        read_job(Path("absent.json"))


def test_keys_with_plain_defaults_may_be_missing() -> None:
    job = read_job(config(inference=None, dataset__seed=None, dataset__template=None, training__fp16=None))
    assert (job.sampling.max_new_tokens, job.sampling.temperature, job.seed, job.notes) == (512, 0.8, 42, ())
    assert job.sampling.thinking is False
    harmless = config(training__adam_beta2=0.999, training__optim="adamw_torch", training__bf16=False, training__seed=3)
    job = read_job(harmless)
    assert job.seed == 3
    assert any("training.fp16, training.bf16" in note for note in job.notes)
    job = read_job(config(inference__max_model_len=4096))
    assert any(note.endswith("for this machine: training.fp16, inference.max_model_len") for note in job.notes)


def test_paths_are_seen_from_here_and_then_from_beside_the_config(folder: Path) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    config().rename(other / "job.json")
    assert read_job(other / "job.json").instructions == "in.json"
    (other / "in.json").write_text("[]")
    assert read_job(other / "job.json").instructions == "in.json"
    Path("in.json").unlink()
    job = read_job(other / "job.json")
    assert job.instructions == str(other / "in.json")
    assert (job.labeled, job.out) == (Path("out.json"), Path("student"))


@pytest.mark.parametrize(
    ("length", "each", "accumulated", "expected"),
    [
        (100, 1, 8, (800, 1)),  # 8 rows of 100 go at once
        (1000, 1, 8, (2048, 4)),  # two rows fit into what goes at once
        (1000, 4, 2, (4000, 2)),  # four rows at once, as the config says
    ],
)
def test_a_step_has_the_rows_the_config_asks_for(
    length: int, each: int, accumulated: int, expected: tuple[int, int]
) -> None:
    training = Training(
        output_dir="x",
        num_train_epochs=2,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=accumulated,
        warmup_steps=4,
    )
    config, note = train_config(training, [length] * 64, seed=5)
    assert (config.tokens_per_batch, config.gradient_accumulation_steps) == expected
    assert make_plan([length] * 64, config).num_steps == 16  # 64 rows, 8 to a step, twice
    assert (config.warmup_ratio, config.num_epochs, config.seed) == (0.25, 2, 5)
    assert "about 8.0 rows (in the config: 8)" in note


def test_rows_of_mixed_lengths_come_close() -> None:
    lengths = [40 + 17 * i % 400 for i in range(500)]
    training = Training(output_dir="x", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    config, _ = train_config(training, lengths, seed=0)
    steps = make_plan(lengths, config.model_copy(update={"num_epochs": 1.0})).num_steps
    assert 6 <= len(lengths) / steps <= 10


def test_rows_and_their_answers_survive_the_way_through_a_file(folder: Path) -> None:
    from distill_lab.config import DataConfig
    from distill_lab.data.records import Records

    user = {"role": "user", "content": "Hi"}
    conversations = [
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [user, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
    ]
    rows = [instruction_row(messages, answer_text("Yes", "Is it?")) for messages in conversations]
    assert rows[0] == {"instruction": "Hi", "input": "", "output": "<think>\nIs it?\n</think>\n\nYes"}
    Path("rows.json").write_text(json.dumps(rows))
    back = list(Records(DataConfig(path="rows.json")))
    whole = [[*record.prompt.messages, *(record.completion or [])] for record in back]
    answer = {"role": "assistant", "content": "Yes", "thinking": "Is it?"}
    assert whole == [[*messages, answer] for messages in conversations]


def test_local_job_labels_trains_and_does_nothing_twice() -> None:
    log = Log()
    assert run(config(), watch=log) == Path("student").absolute()
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
        run(config(), relabel=again, watch=log)
        if not again:
            assert log.stages == []
    assert Path("student/model.safetensors").stat().st_mtime_ns == weights
    assert Path("out.json").stat().st_mtime_ns >= answers


def test_prepared_answers_stay_and_only_missing_ones_are_asked() -> None:
    mine = [{"instruction": ROWS[3]["instruction"], "input": "", "output": "my own words", "note": "keep me"}]
    other = {"instruction": "Something else", "output": "to be kept as well"}
    empty = {"instruction": ROWS[0]["instruction"], "output": ""}
    Path("out.json").write_text(json.dumps([*mine, other, empty]))
    run(config())
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
    run(config(models__teacher="no/such-teacher"), watch=log)
    assert Path("out.json").read_text() == own
    assert any("the teacher is not used (--relabel generates new answers)" in note for note in log.notes)
    run(config(), relabel=True)
    assert labelled()[0]["output"] == "CAT, AXE"
    answers = Path("out.json").read_bytes()
    run(config(inference__seed=8))  # another teacher or other sampling: what is there counts as prepared
    assert Path("out.json").read_bytes() == answers


def test_what_a_job_needs_is_checked_before_anything_is_written() -> None:
    Path("in.json").write_text("[]")
    with pytest.raises(NoData, match=r"in\.json: no rows"):
        run(config())
    Path("in.json").write_text('[{"instruction": "a"},\n{"instructio": "b"}]')
    with pytest.raises(UserError, match="Invalid student model: no/such-model\nExample: Qwen/Qwen2"):
        run(config(models__student="no/such-model/"))
    Path("student").mkdir()
    with pytest.raises(UserError, match="student already exists and was not created by this run"):
        run(config())
    with pytest.raises(UserError, match=r"training\.output_dir: give the student a separate directory"):
        run(config(training__output_dir="."))
    with pytest.raises(UserError, match=r"out\.txt must end in \.json"):
        run(config(dataset__labeled_path="out.txt"))
    with pytest.raises(UserError, match="this job has no teacher"):
        run(config("kd_sft"), relabel=True)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.json", "job.json", "student"]
    run_directory("student").mkdir()
    Path("student.run/run.json").write_text('{"recipe": "easydistill", "config": {"student": 1}, "stages": {}}')
    with pytest.raises(UserError, match="student already exists and was not created by this run"):
        run(config())
    Path("student").rmdir()
    with pytest.raises(DataError, match=r"in\.json:2: row 1"):
        run(config())


def test_train_only_learns_from_labeled_path_and_counts_what_it_leaves_out() -> None:
    rows = [{**row, "output": "yes"} for row in ROWS]
    rows[5]["output"] = ""
    rows[6]["output"] = "word " * 300
    Path("out.json").write_text(json.dumps(rows))
    run(
        config("kd_sft", dataset__instruction_path=None, models__teacher=None, inference=None, training__max_length=128)
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
    run(config("kd_black_box_api", inference=inference, models__teacher=None))
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
        run(config("kd_black_box_api", inference=wrong, models__teacher=None, dataset__labeled_path="other.json"))
    with pytest.raises(UserError, match=r"job\.json: inference\.base_url: the server's address does not start"):
        run(config("kd_black_box_api", inference={"base_url": "localhost:8000"}))


def distill(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distill_lab.cli", "run", *arguments]


def test_exit_codes_tell_the_truth() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    bad = subprocess.run(distill("absent.json"), env=environment, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "absent.json: No such file or directory; give the path" in bad.stderr
    # A run that talks of errors all the time, and ends well.
    Path("error.json").write_text(json.dumps([{"instruction": "Error: failed", "output": "error"}] * 4))
    path = config("kd_sft", dataset__labeled_path="error.json", training__output_dir="error")
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
        f"job.run({str(config(training__max_steps=2))!r})"
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
    run(config("kd_black_box_train_only", dataset__labeled_path="own.json", **changes))
    training = json.loads((run_directory("student") / "training.json").read_text())
    assert training["num_rows"] + sum(training["dropped"].values()) == 12
    assert training["num_rows"] >= 6
    assert training["steps"] == 2
