"""Generation into a file: resumed after a kill, nothing twice, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.engines import Engine, load_engine
from distill_lab.errors import DataError, UserError
from distill_lab.generate import Progress, generate
from distill_lab.run import read_jsonl, write_jsonl
from distill_lab.types import Completion, Counts, Prompt

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=2, seed=1)


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(ModelConfig(model=str(folder)), EngineConfig(engine="transformers"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.jsonl", 6)


def write_prompts(path: Path, number: int) -> Path:
    rows = (Prompt(f"p-{place}", [{"role": "user", "content": "one " * (1 + place % 7)}]) for place in range(number))
    write_jsonl(path, (row.to_json() for row in rows))
    return path


def read(path: Path) -> dict[tuple[str, int], Completion]:
    rows = [Completion.from_json(row) for row in read_jsonl(path)]
    found = {(row.id, row.sample): row for row in rows}
    assert len(found) == len(rows), "a completion stands twice in the file"
    return found


def no_engine() -> Engine:
    raise AssertionError("nothing is missing: the engine must not be loaded")


def test_every_prompt_gets_every_sample(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "completions.jsonl"
    assert generate(prompts, path, lambda: engine, SAMPLING) == Counts(12, 12, {"error": 0})
    found = read(path)
    assert set(found) == {(f"p-{place}", sample) for place in range(6) for sample in range(2)}
    direct = engine.generate([Prompt.from_json(row) for row in read_jsonl(prompts)], SAMPLING)
    assert found == {(row.id, row.sample): row for row in direct}
    before = path.read_bytes()
    assert generate(prompts, path, no_engine, SAMPLING) == Counts(12, 12, {"error": 0})
    assert path.read_bytes() == before


def test_only_what_is_missing_is_made(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "completions.jsonl"
    generate(prompts, path, lambda: engine, SAMPLING)
    whole, lines = read(path), path.read_bytes().splitlines(keepends=True)
    # A kill in the middle of a line, and one prompt with only one of its samples.
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    asked: list[Prompt] = []

    class Watched:
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            asked.extend(prompts)
            return engine.generate(prompts, sampling)

    generate(prompts, path, Watched, SAMPLING)
    assert read(path) == whole
    kept = [Completion.from_json(json.loads(line)) for line in lines[:5]]
    complete = {row.id for row in kept if sum(other.id == row.id for other in kept) == 2}
    assert {prompt.id for prompt in asked} == {f"p-{place}" for place in range(6)} - complete
    assert complete


def test_progress_counts_what_stood_there(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "completions.jsonl"
    seen: list[Progress] = []
    generate(prompts, path, lambda: engine, SAMPLING, on_progress=seen.append)
    assert [state.done for state in seen] == list(range(13))
    assert {state.total for state in seen} == {12}
    assert (seen[0].seconds_left, seen[-1].seconds_left) == (None, 0)
    assert seen[-1].tokens == sum(row.num_tokens for row in read(path).values())
    assert all(state.tokens_per_s > 0 for state in seen[1:])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))
    seen.clear()
    generate(prompts, path, lambda: engine, SAMPLING, on_progress=seen.append)
    assert [state.done for state in seen] == [8, 9, 10, 11, 12]


def test_errors_are_kept_and_counted(tmp_path: Path, random_model: Callable[..., Path]) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 7)
    model = ModelConfig(model=str(random_model(max_position_embeddings=16)))
    path = tmp_path / "completions.jsonl"
    counts = generate(prompts, path, lambda: load_engine(model, EngineConfig()), SAMPLING)
    found = read(path).values()
    failed = [row for row in found if row.finish_reason == "error"]
    assert 0 < len(failed) < 14
    assert counts == Counts(14, 14 - len(failed), {"error": len(failed)})
    assert all("the model's context is 16" in str(row.error) for row in failed)
    assert generate(prompts, path, no_engine, SAMPLING) == counts


def test_no_prompts_give_an_empty_file(tmp_path: Path) -> None:
    prompts, path = write_prompts(tmp_path / "prompts.jsonl", 0), tmp_path / "completions.jsonl"
    assert generate(prompts, path, no_engine, SAMPLING).rows_in == 0
    assert path.read_bytes() == b""


def test_what_an_engine_did_before_it_failed_stays(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "completions.jsonl"

    class Failing:
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            for number, completion in enumerate(engine.generate(prompts, sampling)):
                if number == 5:
                    raise UserError("the server went away")
                yield completion

    with pytest.raises(UserError, match="went away"):
        generate(prompts, path, Failing, SAMPLING)
    assert len(read(path)) == 5
    generate(prompts, path, lambda: engine, SAMPLING)
    assert len(read(path)) == 12


def test_an_engine_that_returns_too_little_is_noticed(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    class Lazy:
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            return engine.generate(prompts[1:], sampling)

    with pytest.raises(UserError, match="returned 10 of 12 completions"):
        generate(prompts, tmp_path / "completions.jsonl", Lazy, SAMPLING)


def test_malformed_files_are_refused_with_their_line(prompts: Path, tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "completions.jsonl"
    rows = list(read_jsonl(prompts))
    write_jsonl(tmp_path / "twice.jsonl", [*rows, rows[2]])
    with pytest.raises(DataError, match=r"twice\.jsonl:7: the id 'p-2' occurs twice"):
        generate(tmp_path / "twice.jsonl", path, no_engine, SAMPLING)
    write_jsonl(tmp_path / "bare.jsonl", [{"id": "a"}])
    with pytest.raises(DataError, match=r"bare\.jsonl:1: a prompt needs the field 'messages'"):
        generate(tmp_path / "bare.jsonl", path, no_engine, SAMPLING)
    generate(prompts, path, lambda: engine, SAMPLING)
    other = write_prompts(tmp_path / "other.jsonl", 3)
    with pytest.raises(UserError, match="none of the 2 samples of the prompts given"):
        generate(other, path, no_engine, SAMPLING)
    with pytest.raises(UserError, match="remove it or write to another one"):
        generate(prompts, path, no_engine, SAMPLING.model_copy(update={"num_samples": 1}))
    write_jsonl(path, [{"id": "p-0"}])
    with pytest.raises(DataError, match=r"completions\.jsonl:1: a completion needs the field 'sample'"):
        generate(prompts, path, no_engine, SAMPLING)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_loses_and_repeats_nothing(folder: Path, engine: Engine, tmp_path: Path) -> None:
    prompts, path = write_prompts(tmp_path / "prompts.jsonl", 150), tmp_path / "completions.jsonl"
    script = f"""
        from pathlib import Path
        from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
        from distill_lab.engines import load_engine
        from distill_lab.generate import generate
        model = ModelConfig(model={str(folder)!r})
        load = lambda: load_engine(model, EngineConfig(engine="transformers", batch_size=4))
        sampling = SamplingConfig.model_validate({SAMPLING.model_dump()!r})
        generate(Path({str(prompts)!r}), Path({str(path)!r}), load, sampling)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    while child.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 20):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before the kill: more prompts are needed"
    survived = path.read_bytes()[: path.read_bytes().rindex(b"\n") + 1]
    assert len(survived.splitlines()) < 300
    generate(prompts, path, lambda: engine, SAMPLING)
    assert path.read_bytes().startswith(survived)
    whole = tmp_path / "whole.jsonl"
    generate(prompts, whole, lambda: engine, SAMPLING)
    assert read(path) == read(whole)
