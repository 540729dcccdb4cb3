"""Memory and pace of many prompts on their way from rows to a training set, with a teacher on a server.

In: how many prompts. Out: a line per stage, then one JSON object per number of prompts. Data -> generate (a server on
127.0.0.1 in a separate process) -> grade -> training set, each number in a fresh process. `--answered 0.9` begins with a
file that holds nine of ten answers, as after an interruption, so that a million prompts take minutes.

    python -m benchmarks.scale --prompts 100000 300000 1000000
    python -m benchmarks.scale --prompts 1000000 --answered 0.9
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(rb"Number (\d+)")
FILLER = "It is one of the many that this list has. " * 4
SAMPLE_S = 0.05
"""Seconds between looks at the memory."""


def row(number: int) -> dict[str, str]:
    """One row of the data set."""
    return {"question": f"Number {number}: what is it? {FILLER}", "answer": f"{FILLER}\n#### {number}"}


def reply(number: int) -> str:
    """What the teacher says; every fifth answer is wrong."""
    return f"{FILLER}The answer is {number + (number % 5 == 0)}."


async def serve() -> None:
    """Answer every request at once; the port goes to standard output."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
                found = NUMBER.search(body)
                message = {"role": "assistant", "content": reply(int(found[1]) if found else 0)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 60, "completion_tokens": 50}
                data = json.dumps({"choices": [choice], "usage": usage}).encode()
                kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                writer.write(kind + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server, which ends with the block."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", "--serve"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
    finally:
        server.kill()
        server.wait()


class Peak:
    """The most memory that this process holds while a block runs, in bytes."""

    def __init__(self) -> None:
        self._process, self._over = psutil.Process(), threading.Event()
        self.bytes = self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._process.memory_info().rss)


def measure(number: int, folder: Path, url: str, answered: float) -> dict[str, Any]:
    """All stages for `number` prompts: seconds, rows per second and peak memory of each."""
    from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig
    from distill_lab.data.records import write_prompts
    from distill_lab.device import free_memory
    from distill_lab.files.jsonl import write_jsonl
    from distill_lab.generation.engines import load_engine
    from distill_lab.generation.generate import generate
    from distill_lab.grading.grade import grade
    from distill_lab.training_data.training_set import write_training_set
    from distill_lab.types import Completion

    names = ("data", "prompts", "completions", "graded", "train")
    data, prompts, completions, graded, train = (folder / f"{name}.jsonl" for name in names)
    write_jsonl(data, (row(index) for index in range(number)))
    known = round(number * answered)
    if known:
        # A prompt's id is its split and its row.
        rows = (Completion(f"train-{index}", 0, reply(index), None, "stop", 50).to_json() for index in range(known))
        write_jsonl(completions, rows)
    model, engine = ModelConfig(model="openai:mock"), EngineConfig(base_url=url)
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "data": (number, lambda: write_prompts(DataConfig(path=str(data)), prompts)),
        "generate": (
            number - known,
            lambda: generate(prompts, completions, lambda: load_engine(model, engine), SamplingConfig()),
        ),
        "grade": (number, lambda: grade(prompts, completions, graded, "numeric")),
        "training set": (number, lambda: write_training_set(prompts, train, completions=graded)),
    }
    found: dict[str, Any] = {"prompts": number, "answered_before": known}
    for name, (rows_done, work) in steps.items():
        free_memory()
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        with Peak() as peak:
            result = work()
        seconds = time.perf_counter() - start
        found[name] = {
            "seconds": round(seconds, 1),
            "rows_per_s": round(rows_done / seconds),
            "mib_before": round(before / 2**20, 1),
            "mib_peak": round(peak.bytes / 2**20, 1),
        }
        print(f"{number:,} {name}: {json.dumps(found[name])} ({result})", flush=True)
    return found


def run(number: int, *, answered: float, folder: Path | None) -> dict[str, Any]:
    """`measure` in a fresh process, in a folder that is removed."""
    environment = {**os.environ, "DISTILL_LAB_CACHE": "off", "OPENAI_API_KEY": "", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as place, serving() as url:
        command = [sys.executable, "-m", "benchmarks.scale", "--child", place, "--url", url]
        command += ["--prompts", str(number), "--answered", str(answered)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as child:
            assert child.stdout is not None
            last = ""
            for last in child.stdout:
                if not last.startswith("{"):
                    print(last, end="", flush=True)
        if child.returncode:
            raise SystemExit(f"{number:,} prompts: the child ended with {child.returncode}")
    return json.loads(last)


def main() -> None:
    """Serve, be the child, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100_000], help="numbers of prompts")
    parser.add_argument("--answered", type=float, default=0.0, help="share of the answers that are there before")
    parser.add_argument("--folder", type=Path, help="where the files go (a gigabyte for a million prompts)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
    elif given.child:
        print(json.dumps(measure(given.prompts[0], given.child, given.url, given.answered)))
    else:
        for number in given.prompts:
            print(json.dumps(run(number, answered=given.answered, folder=given.folder)), flush=True)


if __name__ == "__main__":
    main()
