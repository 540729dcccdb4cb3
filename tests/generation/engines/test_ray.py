"""The engine ray on a real Ray cluster of this machine: nothing lost to bad prompts, dead workers or a killed driver."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.generation.engines._ray.blocks import MAX_BLOCK, MAX_DEATHS, MAX_IN_A_ROW, Block, Blocks
from distill_lab.types import Completion, Prompt

pytestmark = pytest.mark.slow

LONG = pytest.mark.skipif(not os.environ.get("DISTILL_LAB_LONG"), reason="takes minutes: DISTILL_LAB_LONG=1 runs it")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed here: pip install ray")
HELD = EngineConfig(engine="ray", ray_engine="transformers", num_workers=2, batch_size=4)
SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=2, seed=1)


def make_prompts(number: int) -> list[Prompt]:
    return [Prompt(f"p-{place}", [{"role": "user", "content": "one " * (1 + place % 7)}]) for place in range(number)]


def by_id(completions: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    found = list(completions)
    assert len({(row.id, row.sample) for row in found}) == len(found), "a completion came twice"
    return {(row.id, row.sample): row for row in found}


def drive(
    blocks: Blocks,
    *,
    kills: frozenset[str] = frozenset(),
    raises: frozenset[str] = frozenset(),
) -> tuple[dict[tuple[str, int], Completion], int, int]:
    """Answer all blocks one after another as workers would. Returns completions, and how many died and raised."""
    found: list[Completion] = []
    num_dead = num_raised = 0
    while block := blocks.take():
        for prompt in list(block.prompts.values()):
            if prompt.id in kills:
                num_dead += 1
                blocks.died(block, "killed")
                break
            if prompt.id in raises:
                num_raised += 1
                blocks.raised(block, "raised")
                break
            for sample in range(blocks.num_samples):
                found += blocks.answered(block, Completion(prompt.id, sample, "yes", None, "stop", 1))
    found += blocks.release()
    return by_id(iter(found)), num_dead, num_raised


@pytest.mark.parametrize("number", [1, 7, 1000, 20_000])
def test_blocks_hand_out_every_prompt_once(number: int) -> None:
    blocks, sizes = Blocks(make_prompts(number), 3, 4), []
    seen: list[str] = []
    while block := blocks.take():
        sizes.append(len(block.prompts))
        seen += block.prompts
        assert all(samples == {0, 1, 2} for samples in block.missing.values())
    assert not blocks.waiting
    assert seen == [f"p-{place}" for place in range(number)]
    assert max(sizes) <= MAX_BLOCK
    assert len(sizes) >= min(number, 4)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("place", [0, 500, 998, 999])
def test_one_bad_prompt_is_found_in_a_few_tries(place: int) -> None:
    for way in ("kills", "raises"):
        blocks = Blocks(make_prompts(1000), 2, 1)
        found, num_dead, num_raised = drive(blocks, **{way: frozenset({f"p-{place}"})})
        assert len(found) == 2000
        bad = {key: row for key, row in found.items() if row.finish_reason == "error"}
        assert set(bad) == {(f"p-{place}", 0), (f"p-{place}", 1)}
        assert ("killed its worker" if way == "kills" else "raised") in str(bad[f"p-{place}", 0].error)
        assert 1 <= num_dead + num_raised <= 5


def test_many_bad_prompts_are_all_found() -> None:
    draw = random.Random(0)
    bad = draw.sample(range(500), 40)
    kills, raises = frozenset(f"p-{place}" for place in bad[:20]), frozenset(f"p-{place}" for place in bad[20:])
    found, _, _ = drive(Blocks(make_prompts(500), 1, 3), kills=kills, raises=raises)
    assert len(found) == 500
    assert {key[0] for key, row in found.items() if row.finish_reason == "error"} == kills | raises


def test_what_came_before_a_failure_is_not_asked_again() -> None:
    blocks = Blocks(make_prompts(8), 2, 1)
    block = blocks.take()
    assert block is not None
    for name, sample in (("p-0", 0), ("p-0", 1), ("p-3", 1)):
        assert len(list(blocks.answered(block, Completion(name, sample, "", None, "stop", 1)))) == 1
    blocks.died(block, "killed")
    again: list[Block] = []
    while part := blocks.take():
        again.append(part)
    assert {name: samples for part in again for name, samples in part.missing.items()} == {
        f"p-{place}": {0} if place == 3 else {0, 1} for place in range(1, 8)
    }
    late = Completion("p-3", 1, "once more", None, "stop", 1)
    assert not [row for part in again for row in blocks.answered(part, late)]


def test_where_everything_fails_the_run_stops() -> None:
    everything = frozenset(f"p-{place}" for place in range(100))
    with pytest.raises(UserError, match=f"{MAX_IN_A_ROW} prompts in a row failed, the last one with: raised"):
        drive(Blocks(make_prompts(100), 2, 1), raises=everything)
    with pytest.raises(UserError, match=f"{MAX_DEATHS + 1} workers died"):
        drive(Blocks(make_prompts(100), 2, 1), kills=everything)
    found, _, _ = drive(Blocks(make_prompts(3), 2, 1), raises=everything)
    assert [row.error for row in found.values()] == ["raised"] * 6


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15)


@pytest.fixture(scope="module")
def ray_engine(folder: Path) -> Iterator[Any]:
    """Two workers on a cluster of this machine, ended after the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        engine = load_engine(ModelConfig(model=str(folder)), HELD)
        yield engine
        del engine
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[tuple[str, int], Completion]:
    engine = load_engine(ModelConfig(model=str(folder)), EngineConfig(engine="transformers"))
    return by_id(engine.generate(make_prompts(60), SAMPLING))


@needs_ray
def test_workers_answer_as_the_engine_they_hold(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    assert by_id(ray_engine.generate(make_prompts(60), SAMPLING)) == expected
    actors = [worker.actor for worker in ray_engine._workers]
    assert None not in actors
    assert by_id(ray_engine.generate(make_prompts(3), SAMPLING)) == {
        key: row for key, row in expected.items() if int(key[0][2:]) < 3
    }
    assert [worker.actor for worker in ray_engine._workers] == actors, "the model is loaded once"
    assert list(ray_engine.generate([], SAMPLING)) == []


class Deadly:
    """Messages that end the process that reads them."""

    def __iter__(self) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    def __len__(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def bad_prompt(name: str, messages: Any) -> Prompt:
    return Prompt(name, messages)


def worker_processes() -> list[psutil.Process]:
    """The workers' processes on this machine."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::Worker")
    ]


@needs_ray
def test_a_prompt_the_engine_raises_over_is_an_error_alone(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    prompts = make_prompts(60)
    prompts[17:17] = [bad_prompt("bad", None)]
    found = by_id(ray_engine.generate(prompts, SAMPLING))
    failed = [found.pop(("bad", sample)) for sample in range(2)]
    assert [(row.finish_reason, str(row.error)[:10]) for row in failed] == [("error", "TypeError:")] * 2
    assert found == expected


@needs_ray
def test_a_prompt_that_ends_its_worker_is_an_error_alone(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    prompts = make_prompts(60)
    prompts[40:40] = [bad_prompt("deadly", Deadly())]
    found = by_id(ray_engine.generate(prompts, SAMPLING))
    failed = [found.pop(("deadly", sample)) for sample in range(2)]
    assert {row.finish_reason for row in failed} == {"error"}
    # With others of its block, which then was split once or twice, and alone.
    errors = [str(row.error) for row in failed]
    assert [bool(re.match("it killed its worker [23] times", error)) for error in errors] == [True, True], errors
    assert found == expected


@needs_ray
def test_a_worker_that_is_killed_is_replaced(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    before = worker_processes()
    assert before
    answers, found = ray_engine.generate(make_prompts(60), SAMPLING), []
    for number, row in enumerate(answers):
        found.append(row)
        if number == 5:
            before[0].kill()
    assert by_id(iter(found)) == expected
    assert not before[0].is_running()
    assert by_id(ray_engine.generate(make_prompts(60), SAMPLING)) == expected


@needs_ray
def test_a_second_model_takes_the_places_of_the_first(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    assert by_id(ray_engine.generate(make_prompts(60), SAMPLING)) == expected
    second = load_engine(ModelConfig(model="tiny:student"), HELD)
    assert len(list(second.generate(make_prompts(3), SAMPLING))) == 6
    del second
    assert by_id(ray_engine.generate(make_prompts(60), SAMPLING)) == expected


@needs_ray
def test_stopping_early_ends_what_is_under_way(ray_engine: Any, expected: dict[Any, Completion]) -> None:
    answers = ray_engine.generate(make_prompts(60), SAMPLING)
    next(answers)
    answers.close()
    assert by_id(ray_engine.generate(make_prompts(60), SAMPLING)) == expected


@needs_ray
def test_what_is_wrong_with_the_model_is_told(ray_engine: Any, tmp_path: Path) -> None:
    assert ray_engine  # a cluster runs
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    for model, engine, reason in (
        (str(broken), "transformers", f"{broken}: cannot be loaded"),
        ("tiny:nobody", "transformers", "there is no such embedded model"),
        ("tiny:teacher", "nothing", "no engine 'nothing'"),
    ):
        config = HELD.model_copy(update={"ray_engine": engine, "num_workers": 1})
        with pytest.raises(UserError, match=reason):
            list(load_engine(ModelConfig(model=model), config).generate(make_prompts(2), SAMPLING))
    with pytest.raises(UserError, match="it cannot be ray"):
        load_engine(ModelConfig(model="tiny:teacher"), HELD.model_copy(update={"ray_engine": "ray"}))


@needs_ray
def test_a_cluster_of_ours_lasts_until_its_last_engine_ends() -> None:
    code = """
        import ray
        from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
        from distill_lab.generation.engines import load_engine
        from distill_lab.types import Prompt
        config = EngineConfig(engine="ray", ray_engine="transformers", num_workers=1)
        first, second = (load_engine(ModelConfig(model="tiny:student"), config) for _ in range(2))
        del first
        prompt = Prompt("p", [{"role": "user", "content": "one"}])
        print(len(list(second.generate([prompt], SamplingConfig(max_new_tokens=2)))), ray.is_initialized())
        del second
        print(ray.is_initialized())
        third = load_engine(ModelConfig(model="tiny:student"), config)
        print(len(list(third.generate([prompt], SamplingConfig(max_new_tokens=2)))))
    """
    environment = os.environ | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "True", "False", "1"], done.stderr


@needs_ray
def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from distill_lab.config import EngineConfig, ModelConfig
        from distill_lab.generation.engines import load_engine
        from distill_lab.errors import UserError
        try:
            load_engine(ModelConfig(model="tiny:teacher"), EngineConfig())
        except UserError as error:
            print(error)
    """
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=True
    )
    assert "no Ray cluster at 127.0.0.1:1" in told.stdout
    assert "unset RAY_ADDRESS" in told.stdout


@needs_ray
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("number", "kills"), [(60, 1), pytest.param(500, 5, marks=LONG)], ids=["60 prompts", "500 prompts"]
)
@pytest.mark.timeout(3000)
def test_kill_9_loses_and_repeats_nothing(folder: Path, tmp_path: Path, number: int, kills: int) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(data, ({"question": "one " * (1 + place % 7) + str(place)} for place in range(number)))
    command = [
        *(sys.executable, "-m", "distill_lab.cli", "generate", "--engine", "ray", "--model", str(folder)),
        *("--data", str(data), "--out", str(out), "--sampling.temperature", "1", "--sampling.max-new-tokens", "12"),
        *("--engine.ray-engine", "transformers", "--engine.num-workers", "2", "--engine.batch-size", "2"),
    ]
    environment = os.environ | {"RAY_ADDRESS": "local", "DISTILL_LAB_CACHE": "off"}
    others, kept, draw = ray_processes(), b"", random.Random(0)
    for _ in range(kills):
        limit = kept.count(b"\n") + draw.randint(1, max(1, number // (2 * kills)))
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while child.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < limit):
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it was done before the kill: more prompts are needed"
        assert out.read_bytes().startswith(kept)
        kept = out.read_bytes()[: out.read_bytes().rindex(b"\n") + 1]
    assert kept.count(b"\n") < number
    deadline = time.monotonic() + 60
    while (left := ray_processes() - others) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, "the cluster outlived its driver"
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "ray" not in (done.stdout + done.stderr).replace(str(tmp_path), "").lower(), (
        "Ray's own notes are not asked for"
    )
    assert out.read_bytes().startswith(kept)
    found = [Completion.from_json(row) for row in read_jsonl(out)]
    assert len(found) == len({row.id for row in found}) == number
    assert all(row.finish_reason != "error" for row in found)


def ray_processes() -> set[int]:
    """All of this machine but those of this process: its cluster may begin new ones at any time."""
    names = ("raylet", "gcs_server", "ray::")
    found = {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(name in str(process.info["cmdline"]) for name in names)
    }
    return found - {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_the_remedy_is_told() -> None:
    with pytest.raises(UserError, match="pip install ray"):
        load_engine(ModelConfig(model="tiny:teacher"), HELD)


def test_ray_is_chosen_where_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_lab.generation.engines import ray as module

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert module.preference() == 0
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert module.preference() == (20 if find_spec("ray") else 0)
