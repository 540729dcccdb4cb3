"""Kill -9 at random moments: a generation is killed again and again, goes on, and has asked nothing twice that was there.

In: how many prompts and kills, and what answers: tiny:teacher here, or (--server) a server of the tests. Out: one JSON
object: completions on disk, those that stand there twice, and how many were asked for more than once (under way at a
kill, or answered and not yet on disk); an error where a completion was asked for that stood on disk before. Not on
Windows, which has no SIGKILL.

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
    """An engine that writes the id of each completion to a file before it hands it over."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self._engine, self._log = engine, log

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """As the engine does."""
        with self._log.open("a", encoding="utf-8", buffering=1) as log:
            for completion in self._engine.generate(prompts, sampling):
                log.write(f"{completion.id}\n")
                yield completion


def live(model: ModelConfig, config: EngineConfig, folder: Path) -> None:
    """One life of the process that generates."""

    def engine() -> Engine:
        return Logged(load_engine(model, config), folder / "asked.log")

    generate(folder / "prompts.jsonl", folder / "completions.jsonl", engine, SAMPLING)


def soak(
    folder: Path, *, num_prompts: int, num_kills: int, start: Callable[[], Any], asked: Callable[[], list[str]]
) -> dict[str, int]:
    """Start lives and kill them, let the last one end. asked: the ids asked for so far, in order."""
    path = folder / "completions.jsonl"
    rows = (Prompt(f"p-{n}", [{"role": "user", "content": f"p-{n}"}]) for n in range(num_prompts))
    write_jsonl(folder / "prompts.jsonl", (row.to_json() for row in rows))
    num_killed = 0
    for number in [*sorted(random.sample(range(1, num_prompts * 9 // 10), num_kills)), None]:
        on_disk, asked_before = set(whole_ids(path)), len(asked())
        life = start()
        while life.is_alive() and (number is None or not path.exists() or path.read_bytes().count(b"\n") < number):
            time.sleep(0.01)
        if number is not None:
            life.kill()
        life.join()
        num_killed += life.exitcode == -9
        assert life.exitcode in (0, -9), f"it ended with {life.exitcode}"
        again = on_disk & set(asked()[asked_before:])
        assert not again, f"asked for again, though on disk: {sorted(again)}"
    found, times = [row["id"] for row in read_jsonl(path)], Counter(asked())
    return {
        "prompts": num_prompts,
        "kills": num_killed,
        "completions": len(found),
        "twice_on_disk": len(found) - len(set(found)),
        "asked_more_than_once": sum(number > 1 for number in times.values()),
    }


def whole_ids(path: Path) -> list[str]:
    """The ids of the lines that are complete."""
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line)["id"] for line in text[: text.rfind(b"\n") + 1].splitlines()]


def soak_model(folder: Path, model: str, *, num_prompts: int, num_kills: int, batch_size: int) -> dict[str, int]:
    """With a model that runs here. Lives are forked, so that libraries are loaded once."""
    import distill_lab.generation.engines.transformers  # noqa: F401 - once, before the lives are forked

    log, config = folder / "asked.log", EngineConfig(engine="transformers", batch_size=batch_size)

    def start() -> Any:
        life = multiprocessing.get_context("fork").Process(target=live, args=(ModelConfig(model=model), config, folder))
        life.start()
        return life

    def asked() -> list[str]:
        return log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []

    return soak(folder, num_prompts=num_prompts, num_kills=num_kills, start=start, asked=asked)


def soak_server(folder: Path, *, num_prompts: int, num_kills: int) -> dict[str, int]:
    """With a server; what it was asked for counts."""
    with HostileServer(delay_s=0.01) as server:
        config = EngineConfig(base_url=server.url, max_concurrency=CONCURRENCY)

        def start() -> Any:
            model = ModelConfig(model="openai:m")
            life = multiprocessing.get_context("spawn").Process(target=live, args=(model, config, folder))
            life.start()
            return life

        return soak(
            folder,
            num_prompts=num_prompts,
            num_kills=num_kills,
            start=start,
            asked=lambda: [request.text for request in server.requests],
        )


def main() -> None:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500, help="how many are asked (default 500)")
    parser.add_argument("--kills", type=int, default=5, help="how often it is killed (default 5)")
    parser.add_argument("--model", default="tiny:teacher", help="what answers (default tiny:teacher)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts at once (default 16)")
    parser.add_argument("--server", action="store_true", help="ask a server instead")
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
