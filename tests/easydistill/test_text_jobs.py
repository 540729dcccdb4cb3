"""EasyDistill's text jobs: the authors' configs against a local server, the translation, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.easydistill.config import TEXT_JOBS, read_job
from distill_lab.easydistill.text_jobs import JOBS, read_text_job, run
from distill_lab.errors import NoData, UserError
from distill_lab.files.jsonl import read_jsonl
from tests.easydistill.jobs import Log, write_config
from tests.hostile_server import HostileServer
from tests.writing_server import sentence, text_for, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("openai_environment")]

LOCAL = {
    "enable_chunked_prefill": True, "seed": 777, "gpu_memory_utilization": 0.5, "temperature": 0.8,
    "trust_remote_code": True, "enforce_eager": False, "max_model_len": 4096, "max_new_tokens": 64,
}  # fmt: skip


@pytest.fixture
def writer() -> Iterator[HostileServer]:
    with HostileServer(rule=write) as server:
        yield server


@pytest.fixture(autouse=True)
def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_MODEL", raising=False)


def problem(number: int) -> str:
    return f"Problem {number}: {sentence(f'problem {number}')}?"


def write_input(path: Path, job: str) -> None:
    """Rows as EasyDistill's code reads them for this job."""
    if job == "instruction_response_extraction_api":
        rows: list[dict[str, str]] = [{"data": sentence(f"text {n}", 40)} for n in range(4)]
    else:
        answer = f"{sentence('steps', 60)}. The answer is 4."
        rows = [{"instruction": problem(n), "output": answer} for n in range(4)]
    path.write_text(json.dumps(rows), encoding="utf-8")


def authors_config(shared_data: Path, job: str, server: HostileServer) -> tuple[Path, Path]:
    """The authors' config with only models, addresses and paths changed; and its output."""
    config = json.loads((shared_data / "easydistill_1.0" / f"{job}.json").read_text(encoding="utf-8"))
    config["dataset"] |= {"input_path": "in.json", "output_path": "out.json"}
    if "base_url" in config["inference"]:
        config["inference"] |= {"base_url": server.url, "api_key": "a-secret-of-mine"}
    else:
        config["models"]["teacher"] = "openai:hostile"
    write_input(Path("in.json"), job)
    Path("job.json").write_text(json.dumps(config), encoding="utf-8")
    return Path("job.json"), Path("out.json")


@pytest.mark.parametrize("job", TEXT_JOBS)
def test_the_authors_configs_run(
    shared_data: Path, writer: HostileServer, job: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", writer.url)
    config, out = authors_config(shared_data, job, writer)
    assert cli.main(["run", str(config)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))
    kind, _, place = job.rpartition("_")
    if kind == "instruction_expansion":
        assert len(rows) == 10
        assert all(set(row) == {"instruction"} for row in rows)
    elif kind == "instruct_sample":
        assert {row["category"] for row in rows} <= {"Math", "Law"}
    else:
        assert len(rows) == 4
    # Every answer is with the row that it was made from.
    asked = {request.text for request in writer.requests}
    if kind in ("cot_generation", "cot_long2short", "cot_short2long", "cot_eval", "instruct_eval"):
        assert [row["instruction"] for row in rows] == [problem(n) for n in range(4)]
    if kind.startswith("cot") and kind != "cot_eval":
        for n, row in enumerate(rows):
            (request,) = {text for text in asked if problem(n) in text}
            written = text_for(request)
            assert row["output"] == (
                written if kind != "cot_generation" else f"<think>\n{sentence(request)}\n</think>\n\nIt is 4."
            )
    if kind in ("instruction_refinement", "instruction_response_extraction"):
        assert {row["instruction"] for row in rows} == {f"Say {sentence(text)}" for text in asked}
    ratings = {
        "cot_eval": {"reasoning_verbosity": 1, "cognitive_difficulty": 1, "logical_correctness": True},
        "instruct_eval": {"informativeness": 1, "helpfulness": 1, "generalization": 1, "correctness": True},
    }
    assert all(row | ratings.get(kind, {}) == row for row in rows)
    if place == "api":
        assert {request.headers["authorization"] for request in writer.requests} == {"Bearer a-secret-of-mine"}
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "job.json"]
        assert not [path for path in files if b"a-secret-of-mine" in path.read_bytes()]
    assert {request.body["model"] for request in writer.requests} == {"hostile"}
    assert all(record.prompt.messages for record in Records(DataConfig(path="out.json")))
    if job != "instruction_expansion_batch":
        return
    # The same command again asks nothing.
    number, before = len(writer.requests), out.read_bytes()
    assert cli.main(["run", str(config)]) == 0
    assert (len(writer.requests), out.read_bytes()) == (number, before)


def config(job: str = "instruction_refinement_api", /, **changes: Any) -> Path:
    """A config; `dataset__input_path="x"` changes one key, None removes it."""
    data: dict[str, Any] = {
        "job_type": job,
        "dataset": {"input_path": "in.json", "output_path": "out.json"},
        "inference": {"base_url": "http://127.0.0.1:1/v1", "api_key": "", "max_new_tokens": 64},
    }
    if job.endswith("_batch"):
        data |= {"models": {"teacher": "tiny:teacher"}, "inference": dict(LOCAL)}
    return write_config(data, changes)


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ("cot_generation_api", {"dataset__input_path": None}, "dataset.input_path: missing"),
        ("cot_generation_api", {"dataset__output_pth": "x"}, "dataset.output_pth: no such key"),
        ("cot_generation_api", {"dataset__num_output_samples": 3}, "dataset.num_output_samples: no such key in cot_gen"),
        ("cot_eval_api", {"inference__prompt": "Rate it."}, "inference.prompt: no such key in cot_eval_api"),
        ("cot_generation_api", {"inference__base_url": "localhost"}, "inference.base_url: the server's address does not"),
        ("cot_generation_api", {"inference__temperature": 1}, "inference.temperature: no such key"),
        ("cot_generation_batch", {"models": None}, "models: missing"),
        ("cot_generation_batch", {"inference__gpu_memory_utilization": 2}, "inference.gpu_memory_utilization: Input"),
        ("cot_generation_batch", {"inference__seed": -1}, "inference.seed: Input should be greater"),
        ("instruction_response_extraction_api", {"inference__prompt": "Make a pair."}, "inference.prompt: a request of"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_config_is_named(job: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(config(job, **changes))
    assert str(caught.value).startswith("job.json: ")
    assert message in str(caught.value)
    assert [path.name for path in Path.cwd().iterdir()] == ["job.json"]


def test_every_key_is_used_or_named() -> None:
    job = read_text_job(
        config("instruction_expansion_batch", dataset__template="kd.jinja", dataset__num_output_samples=7,
               dataset__num_in_context_samples=2, inference__prompt="Write one in <answer></answer>.")
    )  # fmt: skip
    settings = job.settings
    assert (job.job, settings.num_rows, settings.num_shown, settings.seed) == ("expand", 7, 2, 777)
    assert (settings.sampling.temperature, settings.sampling.max_new_tokens, settings.sampling.seed) == (0.8, 64, 777)
    engine = settings.engine
    assert (engine.gpu_memory_utilization, engine.max_model_len, engine.enforce_eager) == (0.5, 4096, False)
    assert settings.model.trust_remote_code is True
    assert job.template is not None
    assert job.template.verbatim
    assert [note.split(" ")[0] for note in job.notes] == [
        "dataset.template",
        "used",
        "inference.enable_chunked_prefill",
    ]
    stream = read_text_job(config("cot_long2short_api", inference__stream=True))
    assert any(note.startswith("inference.stream is not needed") for note in stream.notes)
    assert stream.settings.sampling.temperature == 1
    assert set(JOBS) == {job.rpartition("_")[0] for job in TEXT_JOBS}
    assert len(TEXT_JOBS) == 15


def test_the_model_that_rates_may_be_named_as_in_easydistill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_MODEL", "qwen-plus")
    assert read_text_job(config("cot_eval_api")).settings.model.model == "openai:qwen-plus"
    assert read_text_job(config("cot_eval_api", models={"teacher": "mine"})).settings.model.model == "openai:mine"
    assert read_text_job(config("cot_long2short_api")).settings.model.model == "openai:"


def test_a_local_teacher_that_cannot_do_it_gives_no_row_and_says_why() -> None:
    write_input(Path("in.json"), "instruction_refinement_batch")
    with pytest.raises(NoData, match=r"no row is left: 4 in, 0 kept, 4 dropped: "):
        run(config("instruction_refinement_batch", inference__max_new_tokens=8, inference__temperature=0))
    assert not Path("out.json").exists()
    requests = [row["messages"][0]["content"] for row in read_jsonl(Path("out.json.run/rounds/0.requests.jsonl"))]
    assert len(requests) == 4


def test_other_settings_replace_the_rows_only_with_relabel(writer: HostileServer) -> None:
    write_input(Path("in.json"), "instruction_refinement_api")
    first = config(inference__base_url=writer.url, models={"teacher": "a"})
    log = Log()
    made = run(first, watch=log)
    assert made.counts.kept == 4
    again = config(inference__base_url=writer.url, models={"teacher": "b"})
    with pytest.raises(UserError, match=r"made with other settings: model \(openai:a, now openai:b\).*add --relabel"):
        run(again)
    assert run(again, relabel=True).counts.kept == 4
    assert {request.body["model"] for request in writer.requests} == {"a", "b"}
    assert "OPENAI_API_KEY" in os.environ


def test_read_job_names_the_command_for_text_jobs() -> None:
    with pytest.raises(UserError, match="use `distill synthesize` instead"):
        read_job(config("cot_eval_api"))
