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
from distill_lab.files.jsonl import (
    JsonlAppender,
    atomic_path,
    copy_file,
    read_jsonl,
    whole_rows,
    write_json,
    write_jsonl,
)

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


def test_text_is_written_as_it_is_into_folders_that_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "x.json", {"a": "é", "b": [1]})
    assert (tmp_path / "a" / "b" / "x.json").read_bytes() == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'.encode()
    write_jsonl(tmp_path / "c" / "d" / "rows.jsonl", [{"text": "你好"}])
    with JsonlAppender(tmp_path / "e" / "f" / "rows.jsonl") as appender:
        appender.append([{"text": "你好"}])
    for folder in ("c/d", "e/f"):
        assert (tmp_path / folder / "rows.jsonl").read_bytes() == '{"text": "你好"}\n'.encode()
    write_json(tmp_path / "half.json", {"name": "é cut \ud83d"})
    assert (tmp_path / "half.json").read_bytes() == b'{\n  "name": "\\u00e9 cut \\ud83d"\n}\n'


def test_a_copy_replaces_a_file_whole(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new\0")
    (tmp_path / "old").write_bytes(b"old and longer")
    copy_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new\0"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "old"]


def test_a_temporary_file_is_hidden_keeps_the_suffix_and_fits_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 240}.parquet"
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".n")
        assert temporary.suffix == ".parquet"
        temporary.write_bytes(b"rows")
    assert path.read_bytes() == b"rows"


def test_rows_are_synced_to_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, path.exists())))
    write_jsonl(path, [{"a": 1}])
    assert synced == [(9, False)]
    with JsonlAppender(path) as appender:
        appender.append([{"b": 2}])
        assert synced[1:] == [(18, True)]
    with pytest.raises(ValueError, match="closed file"):
        appender.append([{"c": 3}])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not a JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', r"not UTF-8 \(invalid start byte at byte 7\)"),
        (b'{"a": x}', r"not a JSON object \(Expecting value"),
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


@pytest.mark.parametrize("torn", [b"", b'{"id"', b"\x00" * 65_537, b'{"id": "' + "é".encode() * 100_000])
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


@pytest.mark.parametrize("torn", [b"", b"{", b'{"id": 1', b'{"id": 1}', b"\0", b"\0\0"])
def test_reading_skips_a_last_line_that_a_kill_left_incomplete(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    path.write_bytes(path.read_bytes() + b" \n" + torn)
    assert list(whole_rows(path)) == ROWS


@pytest.mark.parametrize("line", [b"notes", b"[1", b"{{", b"{a", b'"{', b"notes\n"])
def test_reading_refuses_a_last_line_that_is_not_the_start_of_a_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n\n' + line)
    rows = whole_rows(path)
    assert next(rows) == {"a": 0}
    with pytest.raises(DataError, match="not a JSON object") as caught:
        next(rows)
    assert (caught.value.source, caught.value.line) == (str(path), 3)
    assert line.endswith(b"\n") or "this file was not changed" in str(caught.value)


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_link_is_replaced_by_a_file_of_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "shared.json").write_text("{}")
    (tmp_path / "shared.json").chmod(0o644)
    (tmp_path / "link.json").symlink_to(tmp_path / "shared.json")
    write_json(tmp_path / "link.json", {"new": 1})
    assert not (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "link.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shared.json").read_text() == "{}"
