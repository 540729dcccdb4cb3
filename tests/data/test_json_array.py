"""JSON arrays: read the same in blocks of any size, and what damage does to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig
from distill_lab.data import _json_array as json_array_module
from distill_lab.data.records import Records
from distill_lab.errors import DataError


def read(path: Path, **config: Any) -> tuple[list[str], Records]:
    """(ids, the records' object)"""
    records = Records(DataConfig(path=str(path), **config))
    return [record.prompt.id for record in records], records


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (b'{"question": "q", "answer": 1e999}', "contains inf"),
        (b'{"question": "q", "answer": -Infinity}', "contains -inf"),
        (b"3", "found int"),
        (b'{"question": 3}', "'question' is int"),
        (b'{"question": "\xff"}', "broken text"),
        (b'{"question": "\\ud800"}', "broken text"),
    ],
)
def test_bad_element_of_an_array(tmp_path: Path, element: bytes, reason: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'[\n{"question": "a"},\n' + element + b',\n{"question": "b"}\n]')
    with pytest.raises(DataError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: row 1: ")
    ids, records = read(path, skip_invalid=True)
    assert ids == ["train-0", "train-2"]
    assert list(records.counts.dropped.values()) == [1]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'[\n{"question": "a"},\n{"question": b}]', 3, "not JSON"),
        (b'[\n{"question": "a"},\n{"question": "b"', 3, "ends inside this row"),
        (b'[\n{"question": "a"},\n{"question": "b', 3, "ends inside this row"),
        (b'[\n{"question": "a"},\n{"question": "b"}', 3, "ends inside the array"),
        (b'[\n{"question": "a"},\n', 3, "ends inside the array"),
        (b'[\n{"question": "a"},\n{"question": "b\n"},\n{"question": "c"}, {"question": "d"}]', 3, "not JSON"),
        (b'[\n{"question": "a"}\n{"question": "b"}]', 3, "there must be a comma"),
        (b'[\n{"question": "a"},\n]', 3, "not JSON"),
        (b'[\n{"question": "a"}]\n[]', 3, "after the end of the array"),
        (b'[\n{"question": "a"},\n{"question": ' + b"[" * 100_000, 3, "row 1"),
    ],
)
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_torn_array_names_the_line_and_never_ends_quietly(
    tmp_path: Path, content: bytes, line: int, reason: str, skip_invalid: bool
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    records = iter(Records(DataConfig(path=str(path), skip_invalid=skip_invalid)))
    assert next(records).prompt.id == "train-0"
    with pytest.raises(DataError, match=reason) as caught:
        list(records)
    assert caught.value.line == line
    assert "the rest of the file cannot be read" in str(caught.value)


def test_array_is_read_right_whatever_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Any] = [
        {"a": 'x"\\ü\U0001f600', "n": [1.5e-3, -20, True, None, {"b": []}]},
        12345678,
        "text",
        {"long": "y" * 300},
        {},
        [[]],
        None,
        123,
    ]
    for text in (json.dumps(rows), json.dumps(rows, indent=3, ensure_ascii=False)):
        path = tmp_path / "rows.json"
        path.write_text(text, encoding="utf-8")
        for size in (1, 2, 3, 7, 64, 1000):
            monkeypatch.setattr(json_array_module, "BLOCK_CHARS", size)
            with path.open(encoding="utf-8") as file:
                found = list(json_array_module.json_array(file, str(path)))
            assert [value for _, value, _ in found] == [row if isinstance(row, dict) else None for row in rows]
            for (line, _, _), row in zip(found, rows, strict=True):
                start = text.splitlines()[line - 1].strip(" ,") if "\n" in text else text
                assert json.dumps(row)[:1] in start


def test_missing_bracket_does_not_pull_the_file_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array_module, "MAX_ROW_CHARS", 10_000)
    monkeypatch.setattr(json_array_module, "BLOCK_CHARS", 1000)
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "a"},\n[' + '{"question": "b"},\n' * 10_000 + "]")
    with pytest.raises(DataError, match="row 1: no end within 10000 characters; check for a missing bracket") as caught:
        read(path)
    assert caught.value.line == 2


def test_json_file_with_one_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"question": "a"}\n{"question": "b"}\n')
    assert read(path, split="train[1:]")[0] == ["train-1"]
    path.write_text('{\n"examples": []\n')
    with pytest.raises(DataError, match="must be an array of objects, or one object per line"):
        read(path)


def test_real_file_named_by_row_and_line(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "instructions" / "lf_identity.json"
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    assert lines[6] == "  {\n"
    lines[7] = '    "instruction": 5,\n'
    (tmp_path / "rows.json").write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:7: row 1: "):
        read(tmp_path / "rows.json")
