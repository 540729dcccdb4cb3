"""Serve a student with the OpenAI protocol: a model directory -> a child process of vLLM's or transformers' own server.

    with serving(folder, "first-student", port=8000, thinking=False) as server:
        print(server.base_url)
        server.wait()

The child listens on 127.0.0.1 only. It ends when the block does, and when this process is killed. POSIX systems only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.generation.engines._process_guard import Guard

HOST = "127.0.0.1"
SERVERS = ("vllm", "transformers")
"""From the fastest on."""
POLL_S, ASK_S, END_S = 0.5, 5.0, 20.0
"""Seconds between two looks at the server, for an answer to a look, and for the child to end by itself."""
REMEDY = "pip install 'transformers[serving]', or vllm on a machine with a CUDA GPU"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    name: str
    """What the requests call the model."""
    port: int
    kind: str
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        """What --engine.base-url and OpenAI's clients take."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def curl(self) -> str:
        """A command that asks the model something."""
        body = {"model": self.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}
        return f"curl {self.base_url}/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"

    def wait(self) -> int:
        """Wait until the server ends; its exit code."""
        return self.process.wait()


def chosen_server(wanted: str = "auto") -> str:
    """The server to start. Raises UserError for an unknown one, or one that is not installed."""
    if os.name != "posix":
        raise UserError("distill serve needs Linux or macOS; on Windows run it in WSL")
    if wanted not in ("auto", *SERVERS):
        raise UserError(f"--server {wanted}: no such server; choose from auto, {', '.join(SERVERS)}")
    there = {"vllm": find_spec("vllm") is not None, "transformers": _can_serve()}
    found = [name for name in SERVERS if there[name] and wanted in ("auto", name)]
    if not found:
        raise UserError(f"no server is installed ({'vllm, transformers' if wanted == 'auto' else wanted}); {REMEDY}")
    return found[0]


def free_port(port: int) -> int:
    """`port`, or any free one for 0. Raises UserError if another program listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise UserError(f"port {port} is taken by another program; give another --port, or 0 for any") from None
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    name: str,
    *,
    kind: str,
    port: int,
    thinking: bool | None = None,
) -> Iterator[Server]:
    """Start the server and yield it when it answers. Raises UserError, with its last words, if it ends before that.

    thinking: what the chat template does unless a request says otherwise.
    """
    port = free_port(port)
    with tempfile.TemporaryDirectory(prefix="distill-serve-") as place:
        # transformers calls a model by the path that it was started with.
        link = Path(place) / name
        link.symlink_to(folder.resolve(), target_is_directory=True)
        log = Path(place) / "server.log"
        guard = Guard()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *_command(kind, name, port, thinking)],
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not _answers(port):
                if process.poll() is not None:
                    raise UserError(f"the server of {kind} ended before it answered: {_last_words(log)}")
                time.sleep(POLL_S)
            guard.seal()
            yield Server(name, port, kind, process)
        finally:
            _end(process)
            guard.close()


def _command(kind: str, name: str, port: int, thinking: bool | None) -> list[str]:
    where = ["--host", HOST, "--port", str(port)]
    if kind == "vllm":
        words = ["vllm.entrypoints.cli.main", "serve", f"./{name}", *where, "--served-model-name", name]
        if thinking is not None:
            words += ["--default-chat-template-kwargs", json.dumps({"enable_thinking": thinking})]
        return words
    words = ["transformers.cli.transformers", "serve", name, *where]
    return words if thinking is None else [*words, "--reasoning", "on" if thinking else "off"]


def _can_serve() -> bool:
    from transformers.utils.import_utils import is_serve_available

    return bool(is_serve_available())


def _answers(port: int) -> bool:
    import httpx2

    try:
        return httpx2.get(f"http://{HOST}:{port}/health", timeout=ASK_S, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                continue


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:] or "it printed nothing"
