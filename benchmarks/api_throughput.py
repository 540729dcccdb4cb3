"""Requests per second and peak memory of the engine for servers, against a server that answers at once.

In: how many prompts; they are made as they are asked for. Out: a line per tenth of the way, then one JSON object. The
server is a process of its own; on one core (`taskset -c 1`, Linux) it takes its share of that core. With --files the whole
stage instead: from a file of prompts to one of completions, with an empty cache of requests, then again from that cache.

    python -m benchmarks.api_throughput --prompts 100000
    python -m benchmarks.api_throughput --prompts 100000 --files
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines import load_engine, openai_api
from distill_lab.generation.generate import generate
from distill_lab.generation.request_cache import RequestCache
from distill_lab.types import Prompt

WORDS = 100
"""Of a prompt, and of an answer."""


def prompts(number: int) -> Iterator[Prompt]:
    """`number` prompts, one at a time."""
    for index in range(number):
        yield Prompt(f"p-{index}", [{"role": "user", "content": f"{index} " + "word " * WORDS}])


async def serve(latency_s: float) -> None:
    """Answer every request after `latency_s`; the port goes to standard output."""
    message = {"role": "assistant", "content": "word " * WORDS}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"completion_tokens": WORDS},
    }
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(request.partition(b"content-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                if latency_s:
                    await asyncio.sleep(latency_s)
                writer.write(head.encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving(latency_s: float) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.api_throughput", "--serve", "--latency-s", str(latency_s)]
    root = str(Path(__file__).resolve().parent.parent)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
    finally:
        server.kill()
        server.wait()


class ProgressReporter:
    """Pace and memory on the way to `number` completions."""

    def __init__(self, number: int) -> None:
        self.number, self.process = number, psutil.Process()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        self.early = self.peak = 0

    def at(self, done: int) -> None:
        """`done` completions are there."""
        if done % max(1, self.number // 100) == 0 or done == 1000:
            self.peak = max(self.peak, self.process.memory_info().rss)
            self.early = self.peak if done <= 1000 else self.early
        if done and done % max(1, self.number // 10) == 0:
            pace = done / (time.perf_counter() - self.start)
            print(
                f"{done:,} of {self.number:,}: {pace:,.0f} requests/s, {self.peak / 2**20:,.0f} MiB at most", flush=True
            )

    def figures(self) -> dict[str, float]:
        """All of it, at the end."""
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        return {
            "seconds": round(seconds, 2),
            "requests_per_s": round(self.number / seconds, 1),
            "client_cpu_ms_per_request": round(1000 * cpu / self.number, 3),
            "memory_after_1000_mib": round(self.early / 2**20, 1),
            "peak_memory_mib": round(self.peak / 2**20, 1),
        }


def measure(number: int, *, concurrency: int, latency_s: float) -> dict[str, Any]:
    """Ask `number` prompts and take the time and the memory."""
    with serving(latency_s) as url:
        model = ModelConfig(model="openai:mock")
        engine = openai_api.load(model, EngineConfig(base_url=url, max_concurrency=concurrency))
        watch, done, failed = ProgressReporter(number), 0, 0
        for completion in engine.generate(prompts(number), SamplingConfig()):
            done += 1
            failed += completion.finish_reason == "error"
            watch.at(done)
        figures = watch.figures()
    assert done == number, f"{number} prompts, {done} completions"
    return {"failed": failed, **figures}


def measure_files(number: int, *, concurrency: int, latency_s: float) -> dict[str, Any]:
    """The stage with files and cache: first asked, then from the cache."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, serving(latency_s) as url:
        folder, model = Path(name), ModelConfig(model="openai:mock")
        os.environ["DISTILL_LAB_CACHE"] = name
        config = EngineConfig(base_url=url, max_concurrency=concurrency)
        write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in prompts(number)))
        for step in ("asked", "cached"):
            watch = ProgressReporter(number)
            with RequestCache(model, config, on_note=print) as cache:
                counts = generate(
                    folder / "prompts.jsonl",
                    folder / f"{step}.jsonl",
                    lambda: load_engine(model, config),
                    SamplingConfig(),
                    cache=cache,
                    on_progress=lambda progress, watch=watch: watch.at(progress.done),
                )
            found[step] = {"failed": number - counts.kept, **watch.figures()}
        found["cache_mib"] = round((folder / "requests.sqlite").stat().st_size / 2**20, 1)
        found["completions_mib"] = round((folder / "asked.jsonl").stat().st_size / 2**20, 1)
    return found


def main() -> None:
    """Serve, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000, help="how many are asked (default 10,000)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests under way (default 64)")
    parser.add_argument("--latency-s", type=float, default=0.0, help="how long the server takes (default 0)")
    parser.add_argument("--files", action="store_true", help="from file to file, and again from the cache")
    parser.add_argument("--serve", action="store_true", help="be the server")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.latency_s))
        return
    work = measure_files if arguments.files else measure
    figures = work(arguments.prompts, concurrency=arguments.concurrency, latency_s=arguments.latency_s)
    how = {"prompts": arguments.prompts, "concurrency": arguments.concurrency, "latency_s": arguments.latency_s}
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    print(json.dumps({**how, "cores": cores, **figures}))


if __name__ == "__main__":
    main()
