"""Serve a student on this machine with OpenAI's protocol, by vLLM's or transformers' own server.

In: a run directory (what --run named), a model directory or a Hugging Face id. Out: a server on 127.0.0.1 until Ctrl-C; its
address, which --engine.base-url and every OpenAI client take, and a curl command to try it are printed.

    distill serve runs/first
    distill chat openai:first-student --engine.base-url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

from typing import Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import Quantization


class Config(settings.Config):
    """Settings of `distill serve`."""

    run: Annotated[str, tyro.conf.Positional]
    """A run directory, a model directory, tiny:student, or a Hugging Face id."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Where to listen; 0: any free port."""
    server: str = "auto"
    """vllm or transformers; auto: vllm if it is installed."""
    quantization: Quantization = "none"
    """Of adapters without a run: what they were trained on."""


def main(config: Config) -> int:
    """Start the server, print how to use it, and wait until it ends."""
    import tempfile
    from pathlib import Path

    from distill_lab.export._server import chosen_server, serving
    from distill_lab.export._source import find_source, plain_folder
    from distill_lab.terminal import Terminal

    kind = chosen_server(config.server)
    source = find_source(config.run, quantization=config.quantization)
    thinking = (source.config.get("test_sampling") or {}).get("thinking")
    terminal = Terminal()
    terminal.stage(f"starting the server of {kind} for {source.name}")
    with tempfile.TemporaryDirectory() as work:
        folder = plain_folder(source, Path(work))
        with serving(folder, source.name, kind=kind, port=config.port, thinking=thinking) as server:
            terminal.finished("")
            terminal.print(f"model     {server.name}")
            terminal.print(f"base URL  {server.base_url}")
            terminal.print(f"try it    {server.curl}")
            terminal.print(f"or        distill chat openai:{server.name} --engine.base-url {server.base_url}")
            terminal.print("Ctrl-C ends it")
            try:
                code = server.wait()
            except KeyboardInterrupt:
                terminal.print("the server has ended")
                return 0
    terminal.print(f"the server ended by itself, with exit code {code}")
    return 1 if code else 0
