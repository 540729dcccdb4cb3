"""The cache shared by runs: what counts as the same request, what is kept, and what happens when the file is not well."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from distill_lab import cli
from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import json_line, read_jsonl, write_jsonl
from distill_lab.generation import request_cache
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.generation.generate import generate
from distill_lab.generation.request_cache import CacheFile, RequestCache, cache_path, model_key
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Completion, Counts, Prompt
from tests.hostile_server import HostileServer, Reply

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=2, seed=1)
MODEL, SERVER, ENGINE = ModelConfig(model="tiny:teacher"), ModelConfig(model="openai:m"), EngineConfig()
PROMPT = Prompt("p-0", [{"role": "user", "content": "one"}])


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "requests.sqlite"


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(ModelConfig(model=str(folder)), EngineConfig(engine="transformers"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (Prompt(f"p-{n}", [{"role": "user", "content": "one " * (1 + n)}]).to_json() for n in range(6)))
    return path


def no_engine() -> Engine:
    raise AssertionError("everything is in the cache: the engine must not be loaded")


def opened(model: ModelConfig = MODEL, config: EngineConfig = ENGINE, notes: list[str] | None = None) -> RequestCache:
    return RequestCache(model, config, on_note=[].append if notes is None else notes.append)


def rows(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = list(read_jsonl(path))
    assert len({(row["id"], row["sample"]) for row in found}) == len(found)
    return {(row["id"], row["sample"]): row for row in found}


def completion(content: str = "yes", **fields: Any) -> Completion:
    return Completion(**{"id": "p-0", "sample": 0, "content": content, "thinking": None, "finish_reason": "stop"} | {
        "num_tokens": 3, **fields
    })  # fmt: skip


# What counts as the same request.


@pytest.mark.parametrize("model", [MODEL, SERVER])
def test_every_sampling_field_but_the_number_of_samples_counts(model: ModelConfig) -> None:
    other = {
        "max_new_tokens": 13, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "stop": ("x",), "thinking": True, "seed": 2, "from_model": True, "response_format": "json",
    }  # fmt: skip
    keys, cache = opened(model).keys(PROMPT, SAMPLING), opened(model)
    assert len(set(keys)) == 2
    for name in set(SamplingConfig.model_fields) - {"num_samples"}:
        changed = cache.keys(PROMPT, SAMPLING.model_copy(update={name: other[name]}))
        assert not set(changed) & set(keys), name
    assert cache.keys(PROMPT, SAMPLING.model_copy(update={"num_samples": 3}))[:2] == keys


def test_messages_count_and_the_id_where_a_draw_depends_on_it() -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    for messages in ([{"role": "user", "content": "two"}], [{"role": "system", "content": "one"}], PROMPT.messages * 2):
        other = Prompt("p-0", messages)
        assert opened().keys(other, greedy) != opened().keys(PROMPT, greedy)
    moved = Prompt("p-1", PROMPT.messages, answer="1", meta={"level": 3})
    assert opened().keys(moved, greedy) == opened().keys(PROMPT, greedy)
    assert opened().keys(moved, SAMPLING) != opened().keys(PROMPT, SAMPLING)
    assert opened(SERVER).keys(moved, SAMPLING) == opened(SERVER).keys(PROMPT, SAMPLING)


def test_a_directory_counts_by_its_files_and_adapters_by_their_base_too(tmp_path: Path, folder: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for place in (base, adapter):
        place.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    model = ModelConfig(model=str(adapter))
    keys = [model_key(model, ENGINE)[1]]
    assert model_key(ModelConfig(model=os.path.relpath(adapter)), ENGINE) == (str(adapter), keys[0])
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    keys.append(model_key(model, ENGINE)[1])
    (base / "config.json").write_text("{ }")
    keys.append(model_key(model, ENGINE)[1])
    keys.append(model_key(model.model_copy(update={"quantization": "4bit"}), ENGINE)[1])
    keys.append(model_key(model, EngineConfig(engine="transformers"))[1])
    assert len(set(keys)) == 5
    assert model_key(model, EngineConfig(batch_size=3, timeout_s=1, base_url="http://a"))[1] == keys[2]


def test_a_hub_model_counts_by_the_commit_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, keys = ModelConfig(model="some/model"), []
    place = tmp_path / "models--some--model"
    keys.append(model_key(model, ENGINE)[1])
    for commit in ("a" * 40, "b" * 40):
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        keys.append(model_key(model, ENGINE)[1])
    keys.append(model_key(ModelConfig(model="some/model", revision="a" * 40), ENGINE)[1])
    assert len(set(keys)) == 3
    assert keys[-1] == keys[1]  # one commit by two names is one model
    assert model_key(ModelConfig(model="some/model", revision="main"), ENGINE)[0] == "some/model@main"


def test_a_servers_model_counts_by_name_address_and_extra_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    here = EngineConfig(base_url="http://here/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1/")
    name, key = model_key(SERVER, ENGINE)
    assert (name, key) == model_key(SERVER, here) == model_key(SERVER, EngineConfig(max_concurrency=3, engine="x"))
    others = [
        model_key(ModelConfig(model="openai:n"), here),
        model_key(SERVER, EngineConfig(base_url="http://there/v1")),
        model_key(SERVER, EngineConfig(base_url="http://here/v1", extra_body='{"top_k": 3}')),
    ]
    assert len({key, *(other for _, other in others)}) == 4
    assert others[2] == model_key(SERVER, EngineConfig(base_url="http://here/v1", extra_body='{ "top_k":3 }'))


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DISTILL_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "distill-lab" / "requests.sqlite"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_path() == tmp_path / "home" / ".cache" / "distill-lab" / "requests.sqlite"


# What is kept.


def test_answers_come_back_as_they_were_and_errors_do_not() -> None:
    told = [
        completion("", thinking="a\nb", finish_reason="length", num_tokens=0),
        completion("half \ud83d, whole 😀"),
        completion("", finish_reason="error", error="HTTP 500"),
    ]
    keys = [bytes([n]) * request_cache.KEY_BYTES for n in range(3)]
    with opened() as cache:
        assert cache.find(keys) == {}
        cache.add(zip(keys, told, strict=True))
    with opened() as cache:
        found = cache.find(keys)
    assert [Completion.from_json({**found[key], "id": "p-0", "sample": 0}) for key in keys[:2]] == told[:2]
    assert len(found) == 2
    with opened(ModelConfig(model="tiny:student")) as cache:
        assert cache.find(keys) == {}


def test_a_second_run_asks_nothing(prompts: Path, tmp_path: Path, folder: Path, engine: Engine) -> None:
    first, second, notes = tmp_path / "a" / "c.jsonl", tmp_path / "b" / "c.jsonl", []
    model = ModelConfig(model=str(folder))
    with opened(model, notes=notes) as cache:
        generate(prompts, first, lambda: engine, SAMPLING, cache=cache)
    assert notes == []
    with opened(model, notes=notes) as cache:
        assert generate(prompts, second, no_engine, SAMPLING, cache=cache) == Counts(12, 12, {"error": 0})
    assert notes == ["12 of 12 from the cache"]
    assert rows(second) == rows(first)
    before = second.read_bytes()
    with opened(model, notes=notes) as cache:  # nothing is missing, nothing is looked up
        generate(prompts, second, no_engine, SAMPLING, cache=cache)
    assert (second.read_bytes(), len(notes)) == (before, 1)


def test_more_samples_and_prompts_only_add_to_it(prompts: Path, tmp_path: Path, folder: Path, engine: Engine) -> None:
    model, more, notes = ModelConfig(model=str(folder)), SAMPLING.model_copy(update={"num_samples": 3}), []
    few = tmp_path / "few.jsonl"
    write_jsonl(few, list(read_jsonl(prompts))[:4])
    with opened(model) as cache:
        generate(few, tmp_path / "few.c.jsonl", lambda: engine, SAMPLING, cache=cache)
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", lambda: engine, more, cache=cache)
    assert notes == ["8 of 18 from the cache"]
    whole = tmp_path / "whole.jsonl"
    generate(prompts, whole, lambda: engine, more)
    assert rows(tmp_path / "c.jsonl") == rows(whole)
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "again.jsonl", no_engine, more, cache=cache)
    assert rows(tmp_path / "again.jsonl") == rows(whole)


def test_an_error_is_asked_again_by_the_next_run(prompts: Path, tmp_path: Path) -> None:
    with HostileServer(rule=lambda request: Reply(status=400) if request.text == "one one " else None) as server:
        config, notes = EngineConfig(base_url=server.url), []

        def run(path: Path) -> Counts:
            with opened(SERVER, config, notes) as cache:
                return generate(prompts, path, lambda: load_engine(SERVER, config), SAMPLING, cache=cache)

        assert run(tmp_path / "a.jsonl").kept == 10
        server.rule = None
        assert run(tmp_path / "b.jsonl").kept == 12
        assert len(server.requests) == 14
        assert run(tmp_path / "a.jsonl") == Counts(12, 12, {"error": 0})  # from the cache, in place of the errors
        assert len(server.requests) == 14
    assert notes == ["10 of 12 from the cache", "2 of 2 from the cache"]
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "b.jsonl")


def test_runs_share_their_teacher_and_no_one_their_own_student(
    prompts: Path, tmp_path: Path, folder: Path, file: Path
) -> None:
    notes: list[str] = []

    class Noting(ProgressReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    for name in "ab":
        with Run.open(tmp_path / name, recipe="r", config={}, watch=Noting()) as run:
            Pipeline(run, engine=ENGINE).answers("teacher answers", ModelConfig(model=str(folder)), prompts, SAMPLING)
    assert [note for note in notes if "cache" in note] == ["12 of 12 from the cache"]
    inside = tmp_path / "a" / "own"
    inside.mkdir()
    for source in folder.iterdir():
        (inside / source.name).write_bytes(source.read_bytes())
    with Run.open(tmp_path / "a", recipe="r", config={}) as run:
        pipeline = Pipeline(run, engine=ENGINE)
        pipeline.answers("student answers", ModelConfig(model=str(inside)), prompts, SAMPLING, output="s.jsonl")
    with CacheFile(file) as held:
        assert [each.model for each in held.usage()] == [str(folder)]


def test_off_means_off(
    prompts: Path, tmp_path: Path, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    before, notes = set(tmp_path.iterdir()), []
    with opened(ModelConfig(model=str(folder)), notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", lambda: engine, SAMPLING, cache=cache)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "c.jsonl"}
    assert notes == []


# A file that is not well.


def make_garbage(file: Path) -> None:
    file.write_bytes(b"this is no database at all, by any means" * 100)


def make_torn(file: Path) -> None:
    fill(file, 400)
    with file.open("rb+") as torn:
        torn.truncate(20_000)
        torn.seek(4096)
        torn.write(bytes(16_000))


def make_folder(file: Path) -> None:
    file.mkdir()


def make_no_place(file: Path) -> None:
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")


def make_newer(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version=99")
    db.close()


def fill(file: Path, number: int) -> None:
    with CacheFile(file) as made:
        for start in range(0, number, 100):
            keys = [b"%016d" % n for n in range(start, min(number, start + 100))]
            made.write("m", [(key, {"content": "word " * 20}) for key in keys])


@pytest.mark.parametrize("damage", [make_garbage, make_torn, make_folder, make_no_place, make_newer])
def test_a_file_that_cannot_be_used_is_named_and_done_without(
    damage: Callable[[Path], None], prompts: Path, tmp_path: Path, folder: Path, engine: Engine, file: Path
) -> None:
    file.parent.mkdir()
    damage(file)
    path, notes = tmp_path / "c.jsonl", []
    with opened(ModelConfig(model=str(folder)), notes=notes) as cache:
        assert generate(prompts, path, lambda: engine, SAMPLING, cache=cache) == Counts(12, 12, {"error": 0})
    assert len(rows(path)) == 12
    [note] = notes
    assert str(file) in note
    assert "off from now on" in note
    assert "distill cache --clear" in note


def test_the_database_of_another_program_is_left_alone(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE contacts (name TEXT)")
        db.execute("INSERT INTO contacts VALUES ('mine')")
    db.close()
    notes: list[str] = []
    with opened(notes=notes) as cache:
        assert cache.find([b"a" * request_cache.KEY_BYTES]) == {}
    assert "the database of another program" in notes[0]
    assert distill(capsys, "--clear")[0] == 2
    with sqlite3.connect(file) as db:
        assert db.execute("SELECT name FROM contacts").fetchall() == [("mine",)]
        assert db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (1,)
    db.close()


def test_a_full_disk_turns_the_cache_off_and_not_the_run(
    prompts: Path, tmp_path: Path, folder: Path, engine: Engine
) -> None:
    path, notes = tmp_path / "c.jsonl", []
    with opened(ModelConfig(model=str(folder)), notes=notes) as cache:

        def load() -> Engine:
            assert cache._file is not None
            cache._file._db.execute("PRAGMA max_page_count=1")  # sqlite's own limit: no page may be added
            return engine

        many = SAMPLING.model_copy(update={"num_samples": 50})
        assert generate(prompts, path, load, many, cache=cache) == Counts(300, 300, {"error": 0})
        assert not cache.on
    assert len(rows(path)) == 300
    assert len(notes) == 1
    assert "full" in notes[0]


def test_a_row_that_is_no_json_costs_one_answer(
    prompts: Path, tmp_path: Path, folder: Path, engine: Engine, file: Path
) -> None:
    model, notes = ModelConfig(model=str(folder)), []
    with opened(model) as cache:
        generate(prompts, tmp_path / "a.jsonl", lambda: engine, SAMPLING, cache=cache)
    with sqlite3.connect(file) as db:
        db.execute("UPDATE requests SET answer = SUBSTR(answer, 2) WHERE id = 3")
    db.close()
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "b.jsonl", lambda: engine, SAMPLING, cache=cache)
    assert notes == ["11 of 12 from the cache"]
    assert rows(tmp_path / "b.jsonl") == rows(tmp_path / "a.jsonl")
    with opened(model, notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", no_engine, SAMPLING, cache=cache)


def test_a_file_of_the_first_version_goes_on(file: Path) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as db:
        db.execute(
            "CREATE TABLE requests (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, model TEXT NOT NULL, "
            "made REAL NOT NULL, crc INTEGER NOT NULL, answer BLOB NOT NULL)"
        )
        db.execute("INSERT INTO requests VALUES (1, ?, 'm', 0.0, 7, ?)", (b"a" * 16, json_line({"content": "x"})))
        db.execute("PRAGMA user_version=1")
    db.close()
    with CacheFile(file) as opened_file:
        assert list(opened_file.read([b"a" * 16])) == [(b"a" * 16, {"content": "x"})]
        opened_file.write("m", [(b"b" * 16, {"content": "y"})])
    with CacheFile(file) as again:
        assert len(list(again.read([b"a" * 16, b"b" * 16]))) == 2


def test_a_process_that_holds_the_file_does_not_stop_the_run(
    prompts: Path, tmp_path: Path, folder: Path, engine: Engine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_cache, "BUSY_S", 0.05)
    fill(file, 1)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    notes: list[str] = []
    with opened(ModelConfig(model=str(folder)), notes=notes) as cache:
        generate(prompts, tmp_path / "c.jsonl", lambda: engine, SAMPLING, cache=cache)
    holder.close()
    assert len(rows(tmp_path / "c.jsonl")) == 12
    assert len(notes) == 1
    assert "locked" in notes[0]


WRITE = """
    import sys
    from pathlib import Path
    from distill_lab.generation.request_cache import CacheFile
    first, last = int(sys.argv[2]), int(sys.argv[3])
    with CacheFile(Path(sys.argv[1])) as file:
        for n in range(first, last):
            key = b"%016d" % n
            file.write("m", [(key, {"content": str(n)})])
            assert dict(file.read([key]))[key] == {"content": str(n)}
            print(n, flush=True)
"""


def writer(file: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(WRITE), str(file), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def contents(file: Path) -> list[Any]:
    with CacheFile(file) as held:
        assert held._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row["content"] for _, row in sorted(held.read([b"%016d" % n for n in range(2000)]))]


def test_several_processes_write_at_once_and_none_is_lost(file: Path) -> None:
    children = [writer(file, first, first + 150) for first in (0, 100, 200, 200)]  # overlapping
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0] * 4
    assert contents(file) == [str(n) for n in range(350)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_9_keeps_what_was_written(file: Path) -> None:
    child = writer(file, 0, 2000)
    assert child.stdout is not None
    for _ in range(40):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    assert child.wait() == -signal.SIGKILL, "it was done before the kill"
    told = max(40, *map(int, rest)) if rest else 40
    assert contents(file)[:told] == [str(n) for n in range(told)]
    fill(file, 3)


# The commands.


def distill(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["cache", *arguments])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_command_shows_and_removes(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, printed = distill(capsys)
    assert (code, "is empty" in printed, file.exists()) == (0, True, False)
    with CacheFile(file) as made:
        made.write("[bold]old", [(b"a" * 16, {"content": "x" * 1000})])
        made.write("new", [(b"%016d" % n, {"content": "y" * 2000}) for n in range(100)])
    code, printed = distill(capsys)
    assert "[bold]old" in printed
    assert re.search(rf"new +100 +{100 * len(json_line({'content': 'y' * 2000})) / 1000:.1f} kB", printed)
    size = file.stat().st_size
    code, printed = distill(capsys, "--max-bytes", "50000")
    assert "removed 76 answers of new" in printed
    assert "removed 1 answer of [bold]old, 1.0 kB" in printed
    assert "nothing to remove" in distill(capsys, "--max-bytes", "50000")[1]
    with CacheFile(file) as left:
        assert sorted(key for key, _ in left.read([b"%016d" % n for n in range(100)])) == [
            b"%016d" % n for n in range(76, 100)
        ]
    assert file.stat().st_size < size / 2
    fill(file, 2)
    code, printed = distill(capsys, "--clear")
    assert (code, "removed 2 answers of m" in printed, "removed 24 answers of new" in printed) == (0, True, True)
    assert contents(file) == []


@pytest.mark.parametrize("damage", [make_garbage, make_torn, make_newer])
def test_clear_mends_a_damaged_file(
    damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    file.parent.mkdir()
    damage(file)
    code, printed = distill(capsys)
    assert (code, str(file) in printed, "--clear" in printed) == (2, True, True)
    code, printed = distill(capsys, "--clear")
    assert (code, "removed" in printed) == (0, True)
    fill(file, 1)
    assert contents(file) == ["word " * 20]


def test_the_command_says_what_is_in_its_way(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.mkdir(parents=True)
    code, printed = distill(capsys, "--clear")
    assert (code, str(file) in printed) == (2, True)
    assert file.is_dir()
    monkeypatch.setenv("DISTILL_LAB_CACHE", "off")
    code, printed = distill(capsys, "--clear")
    assert (code, "DISTILL_LAB_CACHE is off" in printed) == (0, True)


def test_generate_asks_the_cache_unless_told_not_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    write_jsonl(data, ({"messages": [{"role": "user", "content": f"ask {n}"}]} for n in range(30)))
    asked = []
    with HostileServer() as server:
        for name, flags in (("a", []), ("b", []), ("c", ["--no-cache"])):
            flags = [*flags, "--engine.base-url", server.url, "--out", str(tmp_path / name / "out.jsonl")]
            assert cli.main(["generate", "--model", "openai:m", "--data", str(data), *flags]) == 0
            asked.append((len(server.requests), "30 of 30 from the cache" in capsys.readouterr().out))
    assert asked == [(30, False), (30, True), (60, False)]
    written = [rows(tmp_path / name / "out.jsonl") for name in "abc"]
    assert written[0] == written[1] == written[2]
