"""The engine vllm's processes: killed, ended with their engine, and a real `vllm serve` for the engine openai_api.

`make test-vllm` runs it.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import EngineDeadError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.models.names import resolve
from distill_lab.types import Completion, Prompt
from tests.helpers import by_id
from tests.vllm_models import GREEDY, SETTINGS, TEACHER, WARM, assert_same, needs_vllm, tiny_prompts

pytestmark = pytest.mark.usefixtures("vllm_environment")
LONG = pytest.mark.skipif(not os.environ.get("DISTILL_LAB_LONG"), reason="takes minutes: DISTILL_LAB_LONG=1 runs it")
SERVER_START_S = 1500
"""Seconds a server may take to start on a machine that has other things to do."""


def vllm_processes() -> set[int]:
    """What vLLM started and this test did not end."""
    return {process.pid for process in psutil.process_iter(["cmdline"]) if "VLLM::" in str(process.info["cmdline"])}


@needs_vllm
@pytest.mark.parametrize(
    ("number", "kills"), [(60, 2), pytest.param(500, 5, marks=LONG)], ids=["60 prompts", "500 prompts"]
)
@pytest.mark.timeout(6000)
def test_kill_9_loses_nothing_and_leaves_nothing(tmp_path: Path, number: int, kills: int) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(data, ({"question": f"{place} and {place + 1}", "answer": "1"} for place in range(number)))
    command = [
        *(sys.executable, "-m", "distill_lab.cli", "generate", "--engine", "vllm", "--model", "tiny:teacher"),
        *("--data", str(data), "--out", str(out), "--sampling.temperature", "2", "--sampling.max-new-tokens", "60"),
        *("--engine.batch-size", "4", "--engine.max-model-len", "512"),
    ]
    others, kept, draw = vllm_processes(), b"", random.Random(0)
    for _ in range(kills):
        limit = kept.count(b"\n") + draw.randint(1, max(1, number // (2 * kills)))
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < limit):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it was done before the kill: more prompts are needed"
        assert out.read_bytes().startswith(kept)
        kept = out.read_bytes()
        kept = kept[: kept.rindex(b"\n") + 1]
    assert kept.count(b"\n") < number
    deadline = time.monotonic() + 60
    while (left := vllm_processes() - others) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert out.read_bytes().startswith(kept)
    found = [Completion.from_json(row) for row in read_jsonl(out)]
    assert len(found) == len({row.id for row in found}) == number
    assert all(row.finish_reason != "error" for row in found)


@needs_vllm
def test_an_engine_whose_process_was_killed_says_so() -> None:
    before = vllm_processes()
    engine = load_engine(TEACHER, EngineConfig(**SETTINGS))
    answers = engine.generate(tiny_prompts(7), WARM)
    next(answers)
    for pid in vllm_processes() - before:
        psutil.Process(pid).kill()
    with pytest.raises(EngineDeadError, match="run the same command again"):
        list(answers)


@needs_vllm
def test_an_engine_ends_with_its_last_reference_and_with_the_program() -> None:
    code = """
        import weakref
        from distill_lab.config import EngineConfig, ModelConfig
        from distill_lab.generation.engines import load_engine

        def load():
            engine = load_engine(ModelConfig(model="tiny:teacher"), EngineConfig(engine="vllm", max_model_len=512))
            return engine, weakref.ref(engine)

        engine, last = load()
        del engine
        print(last())
        engine, _ = load()
    """
    before = vllm_processes()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout == "None\n"
    assert not vllm_processes() - before


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `vllm serve` of tiny:teacher, under the name tiny."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log.txt"
    # What `vllm serve` starts; that itself asks for a package named vllm, which the one for CPUs is not.
    module = "vllm.entrypoints.openai.api_server"
    command = [
        *(sys.executable, "-m", module, "--model", resolve("tiny:teacher"), "--port", str(port)),
        *("--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "1024", "--reasoning-parser", "qwen3", "--generation-config", "vllm"),
    ]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"VLLM_NO_USAGE_STATS": "1"})
    try:
        deadline = time.monotonic() + SERVER_START_S
        while True:
            with socket.socket() as place:
                if place.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


@needs_vllm
@pytest.mark.timeout(SERVER_START_S + 300)
@pytest.mark.parametrize("thinking", [True, False])
def test_a_real_server_answers_as_the_model_does(served: str, reference: Engine, thinking: bool) -> None:
    sampling = GREEDY.model_copy(update={"thinking": thinking})
    server = load_engine(ModelConfig(model="openai:tiny"), EngineConfig(base_url=served))
    assert_same(server, reference, tiny_prompts(7), sampling)


@needs_vllm
@pytest.mark.timeout(SERVER_START_S + 300)
def test_a_real_server_refuses(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = EngineConfig(base_url=served)
    with pytest.raises(UserError, match=r"HTTP 404: .*other"):
        list(load_engine(ModelConfig(model="openai:other"), config).generate(tiny_prompts(1), GREEDY))
    prompts = [*tiny_prompts(1), Prompt("long", [{"role": "user", "content": "one " * 1200}])]
    found = by_id(load_engine(ModelConfig(model="openai:tiny"), config).generate(prompts, GREEDY))
    assert found["long", 0].finish_reason == "error"
    assert "HTTP 400" in str(found["long", 0].error)
    assert sum(row.finish_reason == "stop" for row in found.values()) == 3
    several = SamplingConfig(max_new_tokens=20, temperature=2.0, num_samples=4, stop=("e",), top_k=50, min_p=0.01)
    drawn = by_id(load_engine(ModelConfig(model="openai:tiny"), config).generate(tiny_prompts(1), several))
    assert len(drawn) == 12
    assert not any("e" in row.content for row in drawn.values())
