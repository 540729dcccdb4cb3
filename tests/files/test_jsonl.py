"""files/jsonl.py: rows come back, writes are atomic, and appended rows survive a kill."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill_lab.errors import DataError
from distill_lab.files.jsonl import JsonlAppender, atomic_path, read_jsonl, write_json, write_jsonl

ROWS = [{"id": "a", "text": "你好 🙂\u2028\n"}, {"id": "b", "n": 1.5}]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, ROWS) == 2
    assert list(read_jsonl(path)) == ROWS
    assert path.read_bytes().count(b"\n") == 2
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_half_an_emoji_comes_back(tmp_path: Path) -> None:
    row = {"text": "cut \ud83d"}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    with JsonlAppender(tmp_path / "rows.jsonl") as appender:
        appender.append([row])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [row, row]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(path, [{"a": 1}, {"a": math.nan}])
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("half\ud83d", encoding="utf-8")
    assert list(read_jsonl(path)) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_nan_is_not_appended(tmp_path: Path) -> None:
    with JsonlAppender(tmp_path / "rows.jsonl") as appender:
        appender.append(ROWS)
        with pytest.raises(ValueError, match="JSON compliant"):
            appender.append([{"a": 1}, {"a": math.inf}])
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == ROWS


def test_json_is_readable_and_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "é"})
    write_json(tmp_path / "x.json", {"b": 1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"b": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\r\n\n' + line + b"\n")
    rows = read_jsonl(path)
    assert next(rows) == {"a": 0}
    with pytest.raises(DataError, match=reason) as caught:
        next(rows)
    assert (caught.value.source, caught.value.line) == (str(path), 3)


@pytest.mark.parametrize("torn", [b"", b'{"id"', b"\x00" * 70_000, b'{"id": "' + "é".encode() * 100_000])
@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, whole: int, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS[:whole])
    with path.open("ab") as file:
        file.write(torn)
    with JsonlAppender(path) as appender:
        assert list(read_jsonl(path)) == ROWS[:whole]
        appender.append([{"id": "z"}])
    assert list(read_jsonl(path)) == [*ROWS[:whole], {"id": "z"}]


def test_every_cut_through_a_file_resumes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        with JsonlAppender(path) as appender:
            appender.append([{"id": "z"}])
        assert list(read_jsonl(path)) == [*ROWS[: data[:length].count(b"\n")], {"id": "z"}]


def test_appended_rows_are_on_disk_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = """
import sys
from pathlib import Path
from distill_lab.files.jsonl import JsonlAppender
appender = JsonlAppender(Path(sys.argv[1]))
number = 0
while True:
    appender.append([{"n": number}])
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    with JsonlAppender(path) as appender:
        appender.append([{"n": -1}])
    found = [row["n"] for row in read_jsonl(path)]
    assert said == list(range(20))
    assert found[:20] == said
    assert found == [*range(len(found) - 1), -1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o000])
def test_new_files_are_their_owners_only_and_replaced_ones_keep_their_permissions(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_jsonl(tmp_path / "b.jsonl", ROWS)
        with JsonlAppender(tmp_path / "c.jsonl") as appender:
            appender.append(ROWS)
        write_json(tmp_path / "shared.json", {})
        (tmp_path / "shared.json").chmod(0o640)
        write_json(tmp_path / "shared.json", {"new": 1})
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    assert modes == {"a.json": "0o600", "b.jsonl": "0o600", "c.jsonl": "0o600", "shared.json": "0o640"}
