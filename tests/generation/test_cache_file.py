"""The cache's file: damaged, held, full, written by several processes and killed; and the command that clears it."""

from __future__ import annotations

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

from distill_lab import cli
from distill_lab.config import ModelConfig
from distill_lab.files.jsonl import json_line, write_jsonl
from distill_lab.generation import request_cache
from distill_lab.generation.engines import Engine
from distill_lab.generation.generate import generate
from distill_lab.generation.request_cache import CacheFile
from distill_lab.types import Counts
from tests.hostile_server import HostileServer
from tests.request_caches import SAMPLING, no_engine, opened, rows

pytestmark = pytest.mark.usefixtures("file")


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
