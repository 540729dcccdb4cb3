"""Files as Windows, Excel, pandas and the hub write them: read as they are meant, or refused with the remedy."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.errors import DataError, UserError

ROWS = [{"question": f"Größe {number}?", "answer": str(number)} for number in range(14)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in ROWS)
WANTED = [(row["question"], row["answer"]) for row in ROWS]


def read(path: Path, **config: Any) -> list[tuple[str, str | None]]:
    records = Records(DataConfig(path=str(path), **config))
    return [(record.prompt.messages[-1]["content"], record.prompt.answer) for record in records]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def put(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


FILES: dict[str, tuple[str, bytes]] = {
    "utf-16 of PowerShell": ("rows.jsonl", LINES.encode("utf-16")),
    "utf-16 without its mark": ("rows.jsonl", LINES.encode("utf-16-le")),
    "big-endian utf-16": ("rows.csv", codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be")),
    "utf-16 array": ("rows.json", json.dumps(ROWS).encode("utf-16")),
    "utf-8 with its mark": ("rows.csv", codecs.BOM_UTF8 + TABLE.encode()),
    "upper case": ("ROWS.JSONL", LINES.encode()),
    "upper case table": ("ROWS.CSV", TABLE.encode()),
    "ndjson": ("rows.ndjson", LINES.encode()),
    "gzip": ("rows.jsonl.gz", gzip.compress(LINES.encode())),
    "zstd": ("rows.jsonl.zst", zstd(LINES.encode())),
    "bzip2": ("rows.csv.bz2", bz2.compress(TABLE.encode())),
    "xz": ("rows.json.xz", lzma.compress(json.dumps(ROWS).encode())),
    "gzip that is not named so": ("rows.jsonl", gzip.compress(LINES.encode())),
    "tsv": ("rows.tsv", TABLE.replace(",", "\t").encode()),
    "semicolons": ("rows.csv", TABLE.replace(",", ";").encode()),
    "semicolons and quotes": (
        "rows.csv",
        ('"question";"answer"\n' + "".join(f'"{q}";"{a}"\n' for q, a in WANTED)).encode(),
    ),
    "sep line of Excel": ("rows.csv", ("sep=|\r\n" + TABLE.replace(",", "|").replace("\n", "\r\n")).encode()),
    "index of pandas": ("rows.csv", ("," + TABLE.replace("\n", "\n0,", 14)).encode()),
    "empty columns of Excel": ("rows.csv", (TABLE.replace("\n", ",,\n") + ",,,\n,,,\n").encode()),
    "carriage returns": ("rows.csv", TABLE.replace("\n", "\r").encode()),
    "carriage returns in lines": ("rows.jsonl", LINES.replace("\n", "\r").encode()),
    "array named .jsonl": ("rows.jsonl", json.dumps(ROWS).encode()),
    "long array named .jsonl": ("rows.jsonl", json.dumps(ROWS, indent=1).encode()),
    "lines named .json": ("rows.json", LINES.encode()),
    "objects over several lines": ("rows.json", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    "data": ("rows.json", json.dumps({"version": "1", "data": ROWS}).encode()),
    "rows over several lines": ("rows.json", json.dumps({"rows": ROWS}, indent=2).encode()),
    "columns of pandas": (
        "rows.json",
        json.dumps({n: {str(i): r[n] for i, r in enumerate(ROWS)} for n in ROWS[0]}).encode(),
    ),
    "index of pandas in JSON": ("rows.json", json.dumps({str(i): row for i, row in enumerate(ROWS)}).encode()),
    "split of pandas": (
        "rows.json",
        json.dumps({"columns": [*ROWS[0]], "index": [*range(14)], "data": [[*row.values()] for row in ROWS]}).encode(),
    ),
    "lists of columns": ("rows.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_file_is_read_whole(tmp_path: Path, name: str) -> None:
    file, content = FILES[name]
    assert read(put(tmp_path / file, content)) == WANTED
    assert read(tmp_path / file, split="train[-3:]") == WANTED[-3:]


def test_named_delimiter_and_encoding(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", TABLE.replace(",", "~").encode("cp1252"))
    assert read(path, delimiter="~", encoding="cp1252") == WANTED
    assert read(put(tmp_path / "b.csv", TABLE.replace(",", "\t")), delimiter="tab") == WANTED
    with pytest.raises(UserError, match=r"no adapter reads the fields question~answer"):
        read(path, encoding="cp1252")
    with pytest.raises(UserError, match=r"broken text .* give the file's --data\.encoding"):
        read(path, delimiter="~")
    with pytest.raises(UserError, match="unknown encoding 'nothing'; use a name that Python knows"):
        read(path, encoding="nothing")
    with pytest.raises(UserError, match="unknown encoding 'rot13'"):
        read(path, encoding="rot13")
    with pytest.raises(DataError, match=r"not ascii .*; give another --data\.encoding"):
        read(path, encoding="ascii")
    with pytest.raises(UserError, match="invalid delimiter 'ab'; give one character, or tab"):
        read(path, delimiter="ab")


def test_a_comma_table_with_other_marks_in_its_texts_stays_one(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.csv", 'question,answer\n"a; b; c",1\nd | e,2\n"f\nlonger; text",3\n')
    assert read(path) == [("a; b; c", "1"), ("d | e", "2"), ("f\nlonger; text", "3")]


def test_messages_in_a_table_as_json_or_as_python_prints_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": 'say "hi"'}, {"role": "assistant", "content": "it's hi"}]
    for text in (json.dumps(turns), str(turns)):
        quoted = text.replace('"', '""')
        path = put(tmp_path / "rows.csv", f'messages\n"{quoted}"\n')
        (record,) = Records(DataConfig(path=str(path)))
        assert (record.prompt.messages, record.completion) == (turns[:1], turns[1:])


def test_texts_that_look_like_lists_stay_texts(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", json.dumps({"prompt": "[1, 2]", "completion": '{"a": 1}'}))
    (record,) = Records(DataConfig(path=str(path)))
    assert record.prompt.messages[0]["content"] == "[1, 2]"
    assert record.completion == [{"role": "assistant", "content": '{"a": 1}'}]
    # numpy prints lists without commas; Python would join the texts.
    path = put(tmp_path / "rows.jsonl", json.dumps({"question": "q", "choices": "['a' 'b']", "answer": "a"}))
    (record,) = Records(DataConfig(path=str(path)))
    assert record.prompt.messages[0]["content"] == "q\n\n['a' 'b']"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", 1e999])
def test_a_field_that_nothing_reads_never_refuses_a_row(tmp_path: Path, value: Any) -> None:
    path = put(
        tmp_path / "rows.jsonl", json.dumps({"question": "q", "answer": "1", "score": value, "deep": {"a": [value]}})
    )
    assert read(path) == [("q", "1")]
    assert read(put(tmp_path / "rows.json", f"[{path.read_text()}]")) == [("q", "1")]


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "workbook": ("rows.csv", b"PK\x03\x04rest", "an Excel workbook; unpack it, or save the sheet as CSV UTF-8"),
    "workbook by name": ("rows.xlsx", b"PK\x03\x04rest", "a workbook; save the sheet as CSV UTF-8"),
    "parquet": ("rows.jsonl", b"PAR1rest", "let its name end in .parquet"),
    "pointer": ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "pointer to a table": ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    "page": ("rows.json", b"\n<!doctype html><html>", "a web page, not data"),
    "torn gzip": ("rows.jsonl.gz", gzip.compress(LINES.encode())[:-20], "compressed file is damaged"),
    "torn zstd": ("rows.jsonl.zst", zstd(LINES.encode() * 50)[:-20], "damaged|cannot be read|not a JSON object"),
    "odd utf-16": ("rows.jsonl", LINES.encode("utf-16")[:-1], "not the encoding that its first bytes announce"),
    "repeated names": ("rows.csv", b"question,answer,answer\nq,1,2\n", r"repeated names \('answer'\)"),
    "two lists": ("rows.json", json.dumps({"a": ROWS, "b": ROWS, "n": 1}).encode(), r"several lists of rows \(a, b\)"),
    "not a list": ("rows.json", b'{"data": [1, 2]}', "no adapter reads the fields data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    file, content, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        read(put(tmp_path / file, content))


def test_splits_of_a_file(tmp_path: Path) -> None:
    path = put(tmp_path / "gsm8k_test.jsonl", LINES)
    assert read(path) == read(path, split="test") == WANTED
    with pytest.raises(
        UserError, match=r"no split 'validation'; it has train\. A part of a split is written train\[:1000\]"
    ):
        read(path, split="validation")
    path = put(tmp_path / "rows.json", json.dumps({"train": ROWS, "test": ROWS[:2]}))
    assert (len(read(path)), len(read(path, split="test"))) == (14, 2)
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        read(path, split="dev")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "jsonl.gz"])
def test_a_folder_of_shards(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    put(tmp_path / "set" / "README.md", "about")
    put(tmp_path / "set" / "dataset_infos.json", "{}")
    for number, part in enumerate((ROWS[:5], ROWS[5:10], ROWS[10:])):
        path = folder / f"train-0000{number}-of-00003.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), path)
        elif kind == "csv":
            put(path, "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in part))
        else:
            data = "".join(json.dumps(row) + "\n" for row in part).encode()
            put(path, gzip.compress(data) if kind.endswith("gz") else data)
    put(folder / "validation-00000-of-00001.jsonl", LINES.partition("\n")[0])
    assert read(tmp_path / "set") == WANTED
    assert read(tmp_path / "set", split="train[3:12]") == WANTED[3:12]
    assert read(tmp_path / "set", split="train[-2:]") == WANTED[-2:]
    assert read(tmp_path / "set", split="dev") == WANTED[:1]
    ids = [record.prompt.id for record in Records(DataConfig(path=str(tmp_path / "set"), split="train[4:7]"))]
    assert ids == ["train-4", "train-5", "train-6"]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        read(tmp_path / "set", split="test")
    (folder / f"train-00001-of-00003.{kind}").unlink()
    with pytest.raises(DataError, match="shards 1 of 3 are missing; download them"):
        read(tmp_path / "set")


def test_shards_are_in_the_order_of_their_numbers_and_named_in_errors(tmp_path: Path) -> None:
    for number in range(11):
        put(
            tmp_path / f"part-{number}.jsonl",
            json.dumps(ROWS[number]) + "\n" + ("" if number != 4 else '{"question": 3}\n'),
        )
    records = Records(DataConfig(path=str(tmp_path), skip_invalid=True))
    assert [record.prompt.answer for record in records] == [str(number) for number in range(11)]
    assert str(records.invalid[0]).startswith(f"{tmp_path / 'part-4.jsonl'}:2: row 5: ")


def test_files_of_several_data_sets_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", LINES)
    put(tmp_path / "b.jsonl", LINES)
    with pytest.raises(UserError, match=r"files of several data sets \(a\.jsonl, b\.jsonl\); give one of them"):
        read(tmp_path)


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = {"question": ["a", "b", "c"], "answer": [1, 0, 1]}
    one = datasets.Dataset.from_dict(data, features=features)
    one.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == [("a", "yes"), ("b", "no"), ("c", "yes")]
    one.select([2, 0]).save_to_disk(tmp_path / "selected")
    assert read(tmp_path / "selected", split="train[1:]") == [("a", "yes")]
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    assert (len(read(tmp_path / "both")), read(tmp_path / "both", split="test")) == (3, [("b", "no")])
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        read(tmp_path / "both", split="dev")
    assert read(next((tmp_path / "one").glob("*.arrow"))) == [("a", "yes"), ("b", "no"), ("c", "yes")]
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a folder of save_to_disk"):
        read(tmp_path / "one")


def test_skipped_rows_are_counted_by_reason_and_the_first_is_named(tmp_path: Path) -> None:
    lines = [
        '{"question": "a"}',
        "{torn",
        '{"question": 3}',
        '{"question": ""}',
        '{"question": 4}',
        '{"question": "b"}',
    ]
    records = Records(DataConfig(path=str(put(tmp_path / "rows.jsonl", "\n".join(lines))), skip_invalid=True))
    assert len(list(records)) == 2
    counts = records.counts
    assert (counts.rows_in, counts.kept) == (6, 2)
    dropped = dict(counts.dropped)
    assert dropped["invalid: field 'question' is int, expected text (first: line 3)"] == 2
    assert (
        dropped.pop("invalid: the prompt is empty: no user turn with text before the first answer (first: line 4)") == 1
    )
    assert any(
        reason.startswith("invalid: not a JSON object") and reason.endswith("(first: line 2)") for reason in dropped
    )


def test_reasons_beyond_the_twentieth_are_counted_together(tmp_path: Path) -> None:
    lines = [
        '{"question": "a"}',
        *(json.dumps({"question": "q", "answer": {f"x{n}": 1}, f"f{n}": 1}) for n in range(3)),
    ]
    lines += [json.dumps({f"name{number}": 1, "question": "q", "context": {str(number): 1}}) for number in range(3)]
    lines += [json.dumps({"messages": [{"role": f"r{number}", "content": "x"}]}) for number in range(40)]
    records = Records(DataConfig(path=str(put(tmp_path / "rows.jsonl", "\n".join(lines))), skip_invalid=True))
    list(records)
    assert len(records.counts.dropped) == 21
    assert records.counts.rows_in == len(lines)
    assert any(reason.startswith("invalid: other reasons (first: line") for reason in records.counts.dropped)
