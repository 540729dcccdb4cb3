"""Soak test with kill -9: kill generation at random moments, resume it, and check that no finished completion is repeated.

In: number of prompts and kills, and the model: tiny:teacher, or (--server) the test server. Out: one JSON object with the
completions on disk, duplicates among them, and how many were requested more than once (in progress at a kill, or answered
but not yet on disk). Raises an error if a completion that was already on disk is requested again. Not for Windows, which
has no SIGKILL.

    python -m scripts.soak --prompts 500 --kills 5
    python -m scripts.soak --prompts 500 --kills 5 --server
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.generation.generate import generate
from distill_lab.types import Completion, Prompt
from tests.hostile_server import HostileServer

SAMPLING = SamplingConfig(max_new_tokens=24, temperature=1.0, seed=1)
CONCURRENCY = 4


class Logged:
    """An engine that writes the id of each completion to a file before yielding it."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self._engine, self._log = engine, log

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """See `Engine`."""
        with self._log.open("a", encoding="utf-8", buffering=1) as log:
            for completion in self._engine.generate(prompts, sampling):
                log.write(f"{completion.id}\n")
                yield completion


def live(model: ModelConfig, config: EngineConfig, folder: Path) -> None:
    """One run of the generating process, until it ends or is killed."""

    def engine() -> Engine:
        return Logged(load_engine(model, config), folder / "asked.log")

    generate(folder / "prompts.jsonl", folder / "completions.jsonl", engine, SAMPLING)


def soak(
    folder: Path, *, num_prompts: int, num_kills: int, start: Callable[[], Any], requested: Callable[[], list[str]]
) -> dict[str, int]:
    """Start and kill processes, let the last one finish. requested: returns the ids requested so far, in order."""
    path = folder / "completions.jsonl"
    rows = (Prompt(f"p-{n}", [{"role": "user", "content": f"p-{n}"}]) for n in range(num_prompts))
    write_jsonl(folder / "prompts.jsonl", (row.to_json() for row in rows))
    num_killed = 0
    for number in [*sorted(random.sample(range(1, num_prompts * 9 // 10), num_kills)), None]:
        on_disk, requested_before = set(whole_ids(path)), len(requested())
        process = start()
        while process.is_alive() and (number is None or not path.exists() or path.read_bytes().count(b"\n") < number):
            time.sleep(0.01)
        if number is not None:
            process.kill()
        process.join()
        num_killed += process.exitcode == -9
        assert process.exitcode in (0, -9), f"the process ended with {process.exitcode}"
        again = on_disk & set(requested()[requested_before:])
        assert not again, f"requested again, though on disk: {sorted(again)}"
    found, times = [row["id"] for row in read_jsonl(path)], Counter(requested())
    return {
        "prompts": num_prompts,
        "kills": num_killed,
        "completions": len(found),
        "twice_on_disk": len(found) - len(set(found)),
        "asked_more_than_once": sum(number > 1 for number in times.values()),
    }


def whole_ids(path: Path) -> list[str]:
    """The ids in complete lines."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line)["id"] for line in text[: text.rfind(b"\n") + 1].splitlines()]


def soak_model(folder: Path, model: str, *, num_prompts: int, num_kills: int, batch_size: int) -> dict[str, int]:
    """Soak test with a local model. Forks the processes, so that libraries are loaded only once."""
    import distill_lab.generation.engines.transformers  # noqa: F401 - once, before the processes are forked

    log, config = folder / "asked.log", EngineConfig(engine="transformers", batch_size=batch_size)

    def start() -> Any:
        arguments = (ModelConfig(model=model), config, folder)
        process = multiprocessing.get_context("fork").Process(target=live, args=arguments)
        process.start()
        return process

    def requested() -> list[str]:
        return log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []

    return soak(folder, num_prompts=num_prompts, num_kills=num_kills, start=start, requested=requested)


def soak_server(folder: Path, *, num_prompts: int, num_kills: int) -> dict[str, int]:
    """Soak test with a server; counts the requests it received."""
    with HostileServer(delay_s=0.01) as server:
        config = EngineConfig(base_url=server.url, max_concurrency=CONCURRENCY)

        def start() -> Any:
            model = ModelConfig(model="openai:m")
            process = multiprocessing.get_context("spawn").Process(target=live, args=(model, config, folder))
            process.start()
            return process

        return soak(
            folder,
            num_prompts=num_prompts,
            num_kills=num_kills,
            start=start,
            requested=lambda: [request.text for request in server.requests],
        )


def main() -> None:
    """Run the soak test and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500, help="number of prompts (default 500)")
    parser.add_argument("--kills", type=int, default=5, help="number of kills (default 5)")
    parser.add_argument("--model", default="tiny:teacher", help="model that answers (default tiny:teacher)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts at once (default 16)")
    parser.add_argument("--server", action="store_true", help="use a server instead")
    parser.add_argument("--folder", help="keep the files here (default: a temporary folder)")
    arguments = parser.parse_args()
    how = {"num_prompts": arguments.prompts, "num_kills": arguments.kills}
    with nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory() as folder:
        if arguments.server:
            print(json.dumps(soak_server(Path(folder), **how)))
        else:
            figures = soak_model(Path(folder), arguments.model, batch_size=arguments.batch_size, **how)
            print(json.dumps(figures))


if __name__ == "__main__":
    main()
