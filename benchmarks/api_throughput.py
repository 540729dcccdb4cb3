"""Requests per second and peak memory of the engine for servers, against a server that answers at once.

In: how many prompts; they are made as they are asked for. Out: a line per tenth of the way, then one JSON object. The
server is a process of its own; on one core (`taskset -c 1`, Linux) it takes its share of that core.

    python -m benchmarks.api_throughput --prompts 100000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.engines import load_engine
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


def measure(number: int, *, concurrency: int, latency_s: float) -> dict[str, float | int | None]:
    """Ask `number` prompts and take the time and the memory."""
    command = [sys.executable, "-m", "benchmarks.api_throughput", "--serve", "--latency-s", str(latency_s)]
    root = str(Path(__file__).resolve().parent.parent)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        engine = load_engine(ModelConfig(model="openai:mock"), EngineConfig(base_url=url, max_concurrency=concurrency))
        process = psutil.Process()
        start, cpu = time.perf_counter(), time.process_time()
        early = peak = done = failed = 0
        for completion in engine.generate(prompts(number), SamplingConfig()):  # type: ignore[arg-type]
            done += 1
            failed += completion.finish_reason == "error"
            if done % max(1, number // 100) == 0 or done == 1000:
                peak = max(peak, process.memory_info().rss)
                early = peak if done <= 1000 else early
            if done % max(1, number // 10) == 0:
                pace = done / (time.perf_counter() - start)
                print(f"{done:,} of {number:,}: {pace:,.0f} requests/s, {peak / 2**20:,.0f} MiB at most", flush=True)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        server.kill()
        server.wait()
    assert done == number, f"{number} prompts, {done} completions"
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    return {
        "prompts": number,
        "concurrency": concurrency,
        "latency_s": latency_s,
        "cores": affinity or os.cpu_count(),
        "failed": failed,
        "seconds": round(seconds, 2),
        "requests_per_s": round(number / seconds, 1),
        "client_cpu_ms_per_request": round(1000 * cpu / number, 3),
        "memory_after_1000_mib": round(early / 2**20, 1),
        "peak_memory_mib": round(peak / 2**20, 1),
    }


def main() -> None:
    """Serve, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000, help="how many are asked (default 10,000)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests under way (default 64)")
    parser.add_argument("--latency-s", type=float, default=0.0, help="how long the server takes (default 0)")
    parser.add_argument("--serve", action="store_true", help="be the server")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.latency_s))
        return
    figures = measure(arguments.prompts, concurrency=arguments.concurrency, latency_s=arguments.latency_s)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
