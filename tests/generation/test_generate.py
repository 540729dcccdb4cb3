"""Generation into a file: resumed after a kill, nothing twice, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.generation.generate import Progress, generate
from distill_lab.types import Completion, Counts, Prompt
from scripts import soak
from tests.helpers import ROOT
from tests.hostile_server import HostileServer, Reply, answer

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=2, seed=1)


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


@pytest.mark.parametrize("large", [False, True])
def test_only_what_is_missing_is_made(
    large: bool, prompts: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # prompts stay on disk
        monkeypatch.setattr("distill_lab.data.prompts.MAX_KEPT_BYTES", 0)
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
    assert list(dict.fromkeys(state.done for state in seen)) == list(range(13))
    assert {state.total for state in seen} == {12}
    assert (seen[0].seconds_left, seen[-1].seconds_left) == (None, 0)
    assert seen[-1].tokens == sum(row.num_tokens for row in read(path).values())
    assert all(state.tokens_per_s > 0 for state in seen if state.done)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))
    seen.clear()
    generate(prompts, path, lambda: engine, SAMPLING, on_progress=seen.append)
    assert list(dict.fromkeys(state.done for state in seen)) == [8, 9, 10, 11, 12]


def test_errors_are_kept_counted_by_reason_and_asked_again(tmp_path: Path, random_model: Callable[..., Path]) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 7)
    model = ModelConfig(model=str(random_model(max_position_embeddings=16)))
    path = tmp_path / "completions.jsonl"
    counts = generate(prompts, path, lambda: load_engine(model, EngineConfig()), SAMPLING)
    failed = {key for key, row in read(path).items() if row.finish_reason == "error"}
    assert 0 < len(failed) < 14
    assert all("the model's context is 16" in str(read(path)[key].error) for key in failed)
    # Whichever their lengths: one reason.
    reason = "error (the prompt has N tokens, but the model's context is N)"
    assert counts == Counts(14, 14 - len(failed), {reason: len(failed)})
    before, asked = read(path), set[tuple[str, int]]()

    class Watched:
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            for row in load_engine(model, EngineConfig()).generate(prompts, sampling):
                asked.add((row.id, row.sample))
                yield row

    assert generate(prompts, path, Watched, SAMPLING) == counts
    assert asked == failed
    assert read(path) == before


def row(place: int, error: str | None = None, content: str = "yes") -> Completion:
    if error:
        return Completion(f"p-{place}", 0, "", None, "error", 0, error)
    return Completion(f"p-{place}", 0, content, None, "stop", 3)


class Scripted:
    """Gives these completions of the prompts it is asked."""

    def __init__(self, *rows: Completion | Exception) -> None:
        self.rows, self.asked = rows, list[str]()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        self.asked = [prompt.id for prompt in prompts]
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            yield row


ONE = SamplingConfig()


def test_an_error_stays_until_something_replaces_it(prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    failures = [row(2, "HTTP 500: a"), row(4, "HTTP 500: b")]
    first = Scripted(row(0), row(1), failures[0], row(3), failures[1], row(5))
    assert generate(prompts, path, lambda: first, ONE) == Counts(
        6, 4, {"error (HTTP 500: a)": 1, "error (HTTP 500: b)": 1}
    )
    gone = Scripted(row(2, "HTTP 503"), UserError("the server went away"))
    with pytest.raises(UserError, match="went away"):
        generate(prompts, path, lambda: gone, ONE)
    assert gone.asked == ["p-2", "p-4"]
    assert (read(path)["p-2", 0].error, read(path)["p-4", 0].error) == ("HTTP 503", "HTTP 500: b")
    lines = path.read_bytes()
    again = Scripted(row(4, content="late"), row(2, content="later"))
    assert generate(prompts, path, lambda: again, ONE) == Counts(6, 6, {"error": 0})
    assert [read(path)[f"p-{n}", 0].content for n in range(6)] == ["yes", "yes", "later", "yes", "late", "yes"]
    # Killed after the answer was written and before the error was taken out: both stand there.
    path.write_bytes(lines + json.dumps(row(2, content="later").to_json()).encode() + b"\n")
    left = Scripted(row(4, content="late"))
    assert generate(prompts, path, lambda: left, ONE) == Counts(6, 6, {"error": 0})
    assert left.asked == ["p-4"]
    assert read(path)["p-2", 0].content == "later"


def test_reasons_without_end_are_summed_up(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 10)
    words = "ant bee cow dog elk fox gnu hen ibex jay".split()
    engine = Scripted(*(row(place, f"HTTP 400: {word} {place} {'x' * 200}") for place, word in enumerate(words)))
    counts = generate(prompts, tmp_path / "completions.jsonl", lambda: engine, ONE)
    assert len(counts.dropped) == 6
    assert counts.dropped["other errors"] == 5
    assert all(len(reason) < 120 for reason in counts.dropped)
    assert any(reason.startswith("error (HTTP 400: ant N xxx") for reason in counts.dropped)


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

    with pytest.raises(UserError, match="returned only 10 of 12 completions"):
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
    with pytest.raises(UserError, match="not one of the 2 samples of the given prompts"):
        generate(other, path, no_engine, SAMPLING)
    with pytest.raises(UserError, match="remove it or choose another file"):
        generate(prompts, path, no_engine, SAMPLING.model_copy(update={"num_samples": 1}))
    write_jsonl(path, [{"id": "p-0"}])
    with pytest.raises(DataError, match=r"completions\.jsonl:1: not a completion: the field 'sample' is missing"):
        generate(prompts, path, no_engine, SAMPLING)


def test_prompts_are_read_when_they_are_asked(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", 6)
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\n \n", 2))  # empty lines
    found: list[Sequence[Prompt]] = []

    class Keeping(Scripted):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
            found.append(prompts)
            return super().generate(prompts, sampling)

    write_jsonl(tmp_path / "completions.jsonl", [row(3).to_json()])
    others = (0, 1, 2, 4, 5)
    generate(path, tmp_path / "completions.jsonl", lambda: Keeping(*map(row, others)), ONE)
    [prompts] = found
    assert [prompt.id for prompt in prompts] == [f"p-{n}" for n in others]
    assert (len(prompts), prompts[3].id, prompts[-1].messages) == (5, "p-4", [{"role": "user", "content": "one " * 6}])
    assert [prompt.id for prompt in prompts[1:3]] == ["p-1", "p-2"]
    with pytest.raises(IndexError):
        prompts[5]


def test_a_place_that_cannot_be_written_is_named(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "F").write_text("a file")
    with pytest.raises(UserError, match=r"F/x\.jsonl cannot be written .*a file of this name is in the way"):
        generate(prompts, tmp_path / "F" / "x.jsonl", no_engine, ONE)
    with pytest.raises(UserError, match="cannot be written"):
        generate(prompts, tmp_path / ("x" * 300), no_engine, ONE)


def distill(*arguments: str, most_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """The command, in a process that may write no file beyond `most_bytes`: where a disk is full, the system says no."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes}))" if most_bytes else "pass"
    code = f"import resource, sys; from distill_lab import cli; {limit}; sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on a file's size")
def test_a_full_disk_stops_the_command_and_loses_nothing(tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out" / "answers.jsonl"
    write_jsonl(data, ({"messages": [{"role": "user", "content": f"ask {n}"}]} for n in range(100)))
    with HostileServer(rule=lambda request: Reply(body=answer("word " * 100))) as server:
        flags = ["--model", "openai:m", "--data", str(data), "--engine.base-url", server.url, "--no-cache"]
        file = distill("generate", *flags, "--out", str(data / "x.jsonl"))
        assert (file.returncode, str(data / "x.jsonl") in file.stderr, server.requests) == (2, True, []), file.stderr
        full = distill("generate", *flags, "--out", str(out), most_bytes=30_000)
        assert full.returncode == 2
        assert f"{out} cannot be written (File too large); free some disk space" in full.stderr
        assert "Traceback" not in full.stderr
        kept = out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1]
        assert 0 < kept.count(b"\n") < 100
        asked_before = len(server.requests)
        assert distill("generate", *flags, "--out", str(out)).returncode == 0
        assert out.read_bytes().startswith(kept)
        assert len(read(out)) == 100
        assert len(server.requests) - asked_before == 100 - kept.count(b"\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_five_kills_lose_and_repeat_nothing(folder: Path, engine: Engine, tmp_path: Path) -> None:
    how = ["--prompts", "60", "--kills", "5", "--batch-size", "4", "--model", str(folder), "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "scripts.soak", *how], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["completions"], figures["twice_on_disk"]) == (60, 0)
    assert figures["kills"] > 0
    whole = tmp_path / "whole.jsonl"
    generate(tmp_path / "prompts.jsonl", whole, lambda: engine, soak.SAMPLING)
    assert read(tmp_path / "completions.jsonl") == read(whole)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_five_kills_repeat_only_what_a_server_was_asked_meanwhile(tmp_path: Path) -> None:
    figures = soak.soak_server(tmp_path, num_prompts=100, num_kills=5)
    assert (figures["completions"], figures["twice_on_disk"]) == (100, 0)
    assert figures["kills"] > 0
    # Under way at a kill: four requests, and what was answered and waited for the disk.
    assert figures["asked_more_than_once"] <= 5 * 2 * soak.CONCURRENCY
