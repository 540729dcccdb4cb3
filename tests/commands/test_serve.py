"""`distill serve`: the server of transformers answers the lab's own client, ends with its parent, and says what is wrong."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.export import _server
from distill_lab.export._server import chosen_server, free_port, serving
from distill_lab.generation.engines import complete, load_engine
from tests.helpers import finished_run, model_folder, tiny_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_is_served_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    run = finished_run(tmp_path / "first", rows=tiny_prompts(2))
    command = [sys.executable, "-m", "distill_lab.cli", "serve", str(run), "--port", "0", "--server", "transformers"]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert child.stdout is not None
    lines: list[str] = []
    try:
        while not any("Ctrl-C" in line for line in lines):
            line = child.stdout.readline()
            assert line, lines
            lines.append(line.strip())
        said = "\n".join(lines)
        [url] = re.findall(r"base URL +(\S+)", said)
        [name] = re.findall(r"model +(\S+)", said)
        assert name == "first-student"
        assert f"curl {url}/chat/completions" in said
        engine = load_engine(ModelConfig(model=f"openai:{name}"), EngineConfig(base_url=url))
        [prompt] = tiny_prompts(1)
        sampling = SamplingConfig(max_new_tokens=24)
        [served] = complete(engine, [prompt], sampling)
        local = load_engine(ModelConfig(model=str(run / "student"), dtype="fp32"), EngineConfig(engine="transformers"))
        # The student was tested without thinking, and is served like that.
        [here] = complete(local, [prompt], sampling.model_copy(update={"thinking": False}))
        assert (served.content, served.thinking) == (here.content, None)
        under = psutil.Process(child.pid).children(recursive=True)
        assert under
    finally:
        os.kill(child.pid, signal.SIGINT)
        child.wait(60)
    assert child.returncode == 0
    assert not [process for process in under if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_server_that_ends_early_is_quoted(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "broken")
    pytest.importorskip("fastapi")
    with (
        pytest.raises(UserError, match="ended before it answered: "),
        serving(folder, "x", kind="transformers", port=0),
    ):
        pass


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            free_port(port)
    assert free_port(0) > 0


def test_what_is_installed_is_started_and_otherwise_the_remedy_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "_can_serve", lambda: False)
    monkeypatch.setattr(_server, "find_spec", lambda name: None)
    for wanted in ("auto", "vllm", "transformers"):
        with pytest.raises(UserError, match=r"no server is installed .*transformers\[serving\]"):
            chosen_server(wanted)
    monkeypatch.setattr(_server, "_can_serve", lambda: True)
    assert chosen_server() == "transformers"
    monkeypatch.setattr(_server, "find_spec", lambda name: name)
    assert (chosen_server(), chosen_server("transformers")) == ("vllm", "transformers")
    with pytest.raises(UserError, match="--server tgi: no such server; choose from auto, vllm, transformers"):
        chosen_server("tgi")


def test_vllm_is_told_name_address_and_thinking() -> None:
    words = _server._command("vllm", "first", 8001, False)
    assert words[2] == "./first"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--served-model-name") + 1] == "first"
    assert words[-1] == '{"enable_thinking": false}'
