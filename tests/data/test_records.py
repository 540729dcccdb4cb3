"""Data sets: slices, files of every kind, damaged ones, memory, the hub that does not answer, prompts.jsonl."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import Records, Slice, write_prompts
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.tiny import tasks
from distill_lab.types import Prompt

KINDS = ("json", "jsonl", "parquet", "csv")


def rows_of(number: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i}+1?", "answer": str(i + 1), "note": 'ä, "b"\nc'} for i in range(number)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, **config: Any) -> tuple[list[str], Records]:
    """(ids, the records' object)"""
    records = Records(DataConfig(path=str(path), **config))
    return [record.prompt.id for record in records], records


SLICES = [
    ("train", range(20)),
    ("train[:]", range(20)),
    ("train[:5]", range(5)),
    ("train[15:]", range(15, 20)),
    ("train[3:9]", range(3, 9)),
    ("train[:0]", range(0)),
    ("train[9:3]", range(0)),
    ("train[18:1000]", range(18, 20)),
    ("train[50:]", range(0)),
    ("train[-3:]", range(17, 20)),
    ("train[:-15]", range(5)),
    ("train[-5:-2]", range(15, 18)),
    ("train[-100:2]", range(2)),
    ("train[10%:20%]", range(2, 4)),
    ("train[:12%]", range(2)),
    ("train[-10%:]", range(18, 20)),
    ("train[50%:12]", range(10, 12)),
    (" train [ 1 : 2 ] ", range(1, 2)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_slices(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows.{kind}", rows_of(20))
    for split, wanted in SLICES:
        ids, records = read(path, split=split)
        assert ids == [f"train-{index}" for index in wanted], split
        assert records.counts.kept == records.counts.rows_in == len(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    record = next(iter(Records(DataConfig(path=str(write(tmp_path / f"dev.{kind}", rows_of(3))), split="dev[1:]"))))
    meta = {"note": 'ä, "b"\nc'}
    assert record.prompt == Prompt("dev-1", [{"role": "user", "content": "What is 1+1?"}], "2", meta)


@pytest.mark.parametrize(
    "split",
    ["", "train[", "train[5]", "train[1:2:3]", "train[:1.5%]", "train[:101%]", "train[a:b]", "[:5]", "a[:1]+b[:1]"],
)
def test_bad_slice_names_the_accepted_forms(split: str) -> None:
    with pytest.raises(UserError, match=r"; write it like one of train, train\[:1000\]"):
        Slice.parse(split)


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    lines = b'\xef\xbb\xbf\r\n{"question": "a"}\r\n\r\n   \n{"question": "b"}\n{"question": 3}'
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_bytes(lines)
    ids, records = read(jsonl, skip_invalid=True)
    assert ids == ["train-0", "train-1"]
    assert records.invalid[0].line == 6
    array = tmp_path / "rows.json"
    array.write_bytes(b'\xef\xbb\xbf \r\n[\r\n{"question": "a"}\r\n,\r\n\r\n{"question": "b"}, {"question": 3}]\r\n')
    ids, records = read(array, skip_invalid=True)
    assert ids == ["train-0", "train-1"]
    assert records.invalid[0].line == 6
    table = tmp_path / "rows.csv"
    table.write_bytes(b'\xef\xbb\xbfquestion,answer\r\n"a\r\nb",1\r\n\r\nc,2\r\nd\r\n')
    ids, records = read(table, skip_invalid=True)
    assert ids == ["train-0", "train-1"]
    assert records.invalid[0].line == 6
    assert "1 values, but the header has 2" in records.invalid[0].reason


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_has_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "rows.csv" and content == b"\n \n":
        content = b"\n\n"  # a line with a space is a header in CSV
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)[1].counts.rows_in == 0
    assert read(tmp_path / name, split="train[:50%]")[1].counts.rows_in == 0


def test_empty_array_and_empty_table(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(" [ ] ")
    assert read(tmp_path / "rows.json")[0] == []
    (tmp_path / "rows.csv").write_text("question,answer\n")
    assert read(tmp_path / "rows.csv")[0] == []
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet", split="train[-5:]")[0] == []


BAD_LINES = [
    (b'{"question": "torn', "not a JSON object"),
    (b'{"question": "q", "answer": -Infinity}', "contains -inf"),
    (b'{"question": "q", "answer": 1e999}', "contains inf"),
    (b'["question"]', "found list"),
    (b"null", "found NoneType"),
    (b'{"question": 3}', "'question' is int"),
    (b'{"question": " "}', "prompt is empty"),
    (b'{"answer": "2"}', "'question' is missing"),
    (b'{"question": "\xff"}', "UTF-8"),
    (b'{"question": "\\ud800"}', "broken text"),
    (b'{"question": "q", "\\ud800": 1}', "broken text"),
    (b'{"question": "q", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion|nested too deeply"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_bad_line_stops_or_is_counted(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "a"}\n\n' + line + b'\n{"question": "b"}\n')
    with pytest.raises(DataError, match=reason) as caught:
        read(path)
    assert (caught.value.source, caught.value.line) == (str(path), 3)
    assert str(caught.value).startswith(f"{path}:3: row 1: ")
    ids, records = read(path, skip_invalid=True)
    assert ids == ["train-0", "train-2"]
    assert (records.counts.rows_in, records.counts.kept) == (3, 2)
    ((dropped, number),) = records.counts.dropped.items()
    assert number == 1
    assert re.search(rf"^invalid: .*({reason}).* \(first: line 3\)$", dropped)


def test_csv_with_broken_quotes_or_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\na,1\n"b,2\nc,3\n')
    for skip_invalid in (False, True):
        with pytest.raises(DataError, match="row 1: the quotes do not match") as caught:
            read(path, skip_invalid=skip_invalid)
        assert caught.value.line == 3
    path.write_text("question,question\na,1\n")
    with pytest.raises(DataError, match="repeated names"):
        read(path)
    path.write_bytes(b"question,answer\na,1\nb\xff,2\n" + b"c" * 200_000 + b",3\n")
    ids, records = read(path, skip_invalid=True)
    assert ids == ["train-0", "train-2"]
    assert records.invalid[0].line == 3


def test_parquet_values_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = {
        "question": ["a", "b", "c"],
        "score": [1.5, float("nan"), float("inf")],
        "when": pa.array([0, 1, 2], pa.date32()),
        "vector": [b"\x00", b"\xff", b"text"],
    }
    pq.write_table(pa.table(table), path)
    metas = [record.prompt.meta for record in Records(DataConfig(path=str(path)))]
    assert metas == [
        {"score": 1.5, "when": "1970-01-01"},
        {"when": "1970-01-02"},
        {"when": "1970-01-03", "vector": "text"},
    ]
    pq.write_table(pa.table({"question": ["a", "b"], "answer": [1.0, float("inf")]}), path)
    records = Records(DataConfig(path=str(path), skip_invalid=True))
    assert [record.prompt.answer for record in records] == ["1"]
    assert str(records.invalid[0]) == f"{path}: row 1: field 'answer' contains inf, which is not JSON"


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", rows_of(50))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        read(path)
    path.write_bytes(content[:4] + bytes(200) + content[204:])
    with pytest.raises(DataError, match="cannot be read"):
        read(path, skip_invalid=True)


def test_no_adapter_lists_fields_and_adapters(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "x": 1}])
    with pytest.raises(DataError, match="row 0: no adapter reads the fields text, x; choose from alpaca, distilqwen"):
        read(path)
    ((reason, number),) = read(path, skip_invalid=True)[1].counts.dropped.items()
    assert number == 1
    assert "no adapter reads the fields text, x" in reason
    assert reason.endswith("(first: line 1)")


def test_named_adapter_and_unknown_adapter(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"instruction": "q", "level": "b", "question": "q"}])
    record = next(iter(Records(DataConfig(path=str(path), adapter="question"))))
    assert record.prompt.messages[0]["content"] == "q"
    with pytest.raises(UserError, match="no adapter 'nothing'"):
        Records(DataConfig(path=str(path), adapter="nothing"))


def test_rows_of_several_forms_and_errors_of_the_first_form(tmp_path: Path) -> None:
    rows = [{"question": "a"}, {"instruction": "b", "input": "c"}, {"answer": "d"}]
    ids, records = read(write(tmp_path / "rows.jsonl", rows), skip_invalid=True)
    assert ids == ["train-0", "train-1"]
    assert records.adapter == "question"
    assert "'question' is missing" in records.invalid[0].reason


def test_kept_errors_are_capped(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "a"}] + [{"question": ""}] * 150)
    _, records = read(path, skip_invalid=True)
    assert list(records.counts.dropped.values()) == [150]
    assert len(records.invalid) == 100


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path / "none", "not a data set id"),
        (tmp_path, "a folder without data files"),
    ):
        with pytest.raises(UserError, match=reason):
            Records(DataConfig(path=str(path)))
    (tmp_path / "rows.doc").write_text("a")
    with pytest.raises(UserError, match=r"the name must end in \.json, \.jsonl, \.parquet, \.csv"):
        Records(DataConfig(path=str(tmp_path / "rows.doc")))


def test_tiny() -> None:
    records = Records(DataConfig(path="tiny:problems", split="train[5:8]"))
    ids = [(record.prompt.id, record.prompt.messages[0]["content"]) for record in records]
    wanted = [row["messages"][0]["content"] for row in islice(tasks.rows("problems", "train"), 5, 8)]
    assert ids == [(f"train-{index}", text) for index, text in enumerate(wanted, start=5)]
    for split in ("train", "train[5:]", "train[:10%]", "train[-5:]"):
        with pytest.raises(UserError, match=r"has infinitely many rows.*train\[:1000\]"):
            list(Records(DataConfig(path="tiny:problems", split=split)))
    with pytest.raises(UserError, match="tiny:nothing"):
        list(Records(DataConfig(path="tiny:nothing", split="train[:5]")))


def test_write_prompts(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(
        '{"instruction": "a", "output": "b", "level": 3}\n{torn\n{"instruction": "ü"}\n', encoding="utf-8"
    )
    path = tmp_path / "new" / "prompts.jsonl"
    with pytest.raises(DataError):
        write_prompts(DataConfig(path=str(source)), path)
    assert list(path.parent.iterdir()) == []
    counts = write_prompts(DataConfig(path=str(source), skip_invalid=True), path)
    assert (counts.rows_in, counts.kept, list(counts.dropped.values())) == (3, 2, [1])
    first, second = read_jsonl(path)
    assert first["completion"] == [{"role": "assistant", "content": "b"}]
    assert Prompt.from_json(first) == Prompt("train-0", [{"role": "user", "content": "a"}], None, {"level": 3})
    assert "completion" not in second
    # What was written is itself a data set.
    again = list(Records(DataConfig(path=str(path))))
    assert [record.completion for record in again] == [first["completion"], None]
    assert again[0].prompt.meta == {"level": 3, "id": "train-0"}


def test_records_are_iterated_once(tmp_path: Path) -> None:
    records = Records(DataConfig(path=str(write(tmp_path / "rows.jsonl", rows_of(2)))))
    assert len(list(records)) == 2
    with pytest.raises(AssertionError, match="once"):
        iter(records)


MEMORY = """
import resource, sys
from distill_lab.config import DataConfig
from distill_lab.data.records import Records

peak_mib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
for kind in ("jsonl", "csv", "json", "parquet"):
    path = f"{sys.argv[1]}/rows.{kind}"
    sum(1 for _ in Records(DataConfig(path=path, split="train[:600]")))
    before = peak_mib()
    print(kind, sum(1 for _ in Records(DataConfig(path=path))), peak_mib() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    number, text = 10_000, "0123456789abcdef" * 256
    lines = [f'{{"question": "{i} {text}", "answer": "{i}"}}' for i in range(number)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "rows.json").write_text("[" + ",\n".join(lines) + "]")
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"{i} {text},{i}\n" for i in range(number)))
    table = pa.table({"question": [f"{i} {text}" for i in range(number)], "answer": list(range(number))})
    pq.write_table(table, tmp_path / "rows.parquet", compression="NONE", use_dictionary=False)
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    for line, kind in zip(run.stdout.splitlines(), ("jsonl", "csv", "json", "parquet"), strict=True):
        assert (tmp_path / f"rows.{kind}").stat().st_size > 39 * 2**20
        assert line.split()[:2] == [kind, str(number)]
        assert float(line.split()[2]) < 16, line
