"""A server's model as commands and recipes use it: its name, address and key, kills, and what is asked again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.evaluation.compare import compare_models
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.generation.engines.openai_api import OpenAIEngine
from distill_lab.models.names import api_engine
from distill_lab.pipeline.proof import Evaluation, ask_alike, measure_speeds
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_model
from distill_lab.run import Run
from distill_lab.types import Completion
from tests.hostile_server import KEY, HostileServer, Reply, prompts

SAMPLING = SamplingConfig(max_new_tokens=7)
pytestmark = [pytest.mark.usefixtures("openai_environment"), pytest.mark.slow]


def test_which_models_are_a_servers() -> None:
    assert api_engine("openai:gpt") == "openai_api"
    for name in ("tiny:teacher", "Qwen/Qwen3-8B", "openai", "C:\\models\\x", "ray:x", "./openai"):
        assert api_engine(name) is None
    config = EngineConfig(base_url="http://127.0.0.1:9/v1/chat/completions/", engine="transformers")
    loaded = load_engine(ModelConfig(model="openai:org/m:7b"), config)
    assert isinstance(loaded, OpenAIEngine)
    assert (loaded.model, loaded.base_url) == ("org/m:7b", "http://127.0.0.1:9/v1")
    for model in ("openai:", "Qwen/Qwen3-8B"):
        with pytest.raises(ModelError, match="needs openai:NAME"):
            load_engine(ModelConfig(model=model), EngineConfig(engine="openai_api"))
    with pytest.raises(ModelError, match="has no revision"):
        load_engine(ModelConfig(model="openai:m", revision="v1"), config)


def test_the_address_comes_from_flag_or_environment(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--engine\.base-url .* OPENAI_BASE_URL"):
        load_engine(ModelConfig(model="openai:m"), EngineConfig())
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/")
    [row] = load_engine(ModelConfig(model="openai:m"), EngineConfig()).generate(prompts("a"), SAMPLING)
    assert row.content == "re: a"
    [comparison] = compare_models(["hello"], {"Teacher": "openai:m"})
    assert comparison.answers["Teacher"].content == "re: hello"
    monkeypatch.setenv("OPENAI_BASE_URL", "127.0.0.1:8000/v1")
    with pytest.raises(UserError, match="http://host:8000/v1"):
        load_engine(ModelConfig(model="openai:m"), EngineConfig())
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(UserError, match="OPENAI_API_KEY contains invalid characters"):
        load_engine(ModelConfig(model="openai:m"), EngineConfig(base_url=server.url))


@pytest.mark.parametrize(
    "url", [f"http://me:{KEY}@host/v1", f"https://host/v1?key={KEY}", f"http://host:{KEY}/v1", f"{KEY}", "ftp://host"]
)
def test_a_key_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="server's address") as refused:
        EngineConfig(base_url=url)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_extra_fields_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="extra_body is"):
        EngineConfig(extra_body=text)


def test_only_a_teacher_can_be_on_a_server(tmp_path: Path) -> None:
    from distill_lab.evaluation.speed import measure
    from distill_lab.models.loading import load_model, load_tokenizer

    model = ModelConfig(model="openai:m")
    for attempt in (
        lambda: load_model(model),
        lambda: load_tokenizer(model),
        lambda: measure({"teacher": model}, prompts("a"), sampling=SAMPLING),
    ):
        with pytest.raises(ModelError, match="only a teacher can be one"):
            attempt()
    check_model(model, role="teacher", example="x")
    with pytest.raises(UserError, match="Invalid student model: openai:m"):
        check_model(model, role="student", example="x")


def distill(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distill_lab.cli", *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_repeats_only_what_was_under_way(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out" / "answers.jsonl"
    write_jsonl(data, ({"messages": [{"role": "user", "content": f"ask {n}"}]} for n in range(200)))
    flags = ["--model", "openai:m", "--data", str(data), "--out", str(out), "--engine.max-concurrency", "4"]
    with HostileServer(delay_s=0.02) as server:
        arguments = ["generate", *flags, "--engine.base-url", server.url]
        child = distill(*arguments)
        at = random.randint(5, 150)
        while child.poll() is None and len(server.requests) < at:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        survived = out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1]
        asked_before = len(server.requests)
        child = distill(*arguments)
        printed, _ = child.communicate()
    assert child.returncode == 0, printed
    rows = [Completion.from_json(row) for row in read_jsonl(out)]
    assert len({row.id for row in rows}) == len(rows) == 200
    assert {row.content for row in rows} == {f"re: ask {n}" for n in range(200)}
    assert out.read_bytes().startswith(survived)
    counts = Counter(request.text for request in server.requests)
    assert set(counts) == {f"ask {n}" for n in range(200)}
    on_disk = {Completion.from_json(row).content.removeprefix("re: ") for row in lines(survived)}
    repeated = {text for text, number in counts.items() if number > 1}
    assert not repeated & on_disk
    # Under way: four requests, four answers that waited for the writer, four that waited to be taken.
    assert len(repeated) == asked_before - len(on_disk) <= 12
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text(encoding="utf-8")
    assert KEY not in printed


def lines(text: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_refused_key_ends_the_command_with_2(tmp_path: Path, server: HostileServer) -> None:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, [{"messages": [{"role": "user", "content": "ask"}]}])
    server.script["ask"] = [Reply(status=401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}})]
    out = tmp_path / "answers.jsonl"
    child = distill(
        "generate", "--model", "openai:m", "--data", str(data), "--out", str(out), OPENAI_BASE_URL=server.url
    )
    printed, _ = child.communicate()
    assert child.returncode == 2
    assert "HTTP 401: Incorrect API key provided: ***" in printed
    assert KEY not in printed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_ctrl_c_ends_a_wait_for_the_server(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(data, ({"messages": [{"role": "user", "content": str(n)}]} for n in range(50)))
    flags = ["--model", "openai:m", "--data", str(data), "--out", str(out), "--engine.max-concurrency", "2"]
    with HostileServer(rule=lambda request: Reply(stall=True) if int(request.text) >= 10 else None) as server:
        child = distill("generate", *flags, OPENAI_BASE_URL=server.url)
        while child.poll() is None and server.running < 2:
            time.sleep(0.01)
        while child.poll() is None and out.read_bytes().count(b"\n") < 10:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        printed, _ = child.communicate()
    assert child.returncode == 130, printed
    assert len(list(read_jsonl(out))) == 10


def test_a_servers_speed_is_not_measured_and_that_is_said(tmp_path: Path) -> None:
    notes: list[str] = []

    class Watching(ProgressReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    with Run.open(tmp_path / "run", recipe="r", config={}, watch=Watching()) as run:
        pipeline = Pipeline(run, engine=EngineConfig())
        setups = ask_alike({"teacher": ModelConfig(model="openai:m")}, SAMPLING)
        found = Evaluation(setups, {}, {}, {}, {}, "exact", None)
        assert measure_speeds(pipeline, found, tmp_path / "test.jsonl", long_answers=False) == {}
    assert notes == ["no speed of the teacher: openai:m runs on a server, not here"]


def test_a_stage_answered_by_a_server_is_not_repeated_at_another_address(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (prompt.to_json() for prompt in prompts(*"ab")))
    asked = []
    for extra in ("", "", '{"top_k": 3}'):
        with HostileServer() as server, Run.open(tmp_path / "run", recipe="r", config={}) as run:
            pipeline = Pipeline(run, engine=EngineConfig(base_url=server.url, extra_body=extra))
            answers = pipeline.answers("teacher answers", ModelConfig(model="openai:m"), path, SAMPLING)
            asked.append(len(server.requests))
    assert asked == [2, 0, 2]
    assert {row["content"] for row in read_jsonl(answers)} == {"re: a", "re: b"}
    assert not any(KEY in file.read_text(encoding="utf-8") for file in (tmp_path / "run").rglob("*") if file.is_file())
