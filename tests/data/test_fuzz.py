"""A thousand mutated inputs for each reader: they end in rows or in a UserError, never in another exception."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.columns import TARGETS
from distill_lab.data.records import Records
from distill_lab.errors import UserError

pytestmark = pytest.mark.slow

NUM_INPUTS = 1000
ROWS: list[dict[str, Any]] = [
    {"question": "1+1?", "answer": 1, "choices": ["1", "2 ü"], "note": None},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\nb"}]},
    {"instruction": "Say \"hi\", \n twice", "input": "<noinput>", "output": "hi", "system": "s", "level": 1.5},
    {"prompt": "p", "chosen": "c", "rejected": "r", "tools": [{"name": "f", "parameters": {}}]},
]  # fmt: skip
BYTES = [
    b"", b"\x00", b"\xff", b'"', b"\\", b"[", b"]", b"{", b"}", b",", b";", b"\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe",
    b"NaN", b"1e999", b"\\ud800", b"null", b"9" * 5000, b"[" * 2000, b"PAR1", b"\x1f\x8b",
]  # fmt: skip


def lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def table(delimiter: str) -> bytes:
    cells = [["question", "answer", "x"], ["1+1?", '"2"', ""], ["a b", "3", "y"], ["c", '"d\n"', "z"]]
    return "\n".join(delimiter.join(row) for row in cells).encode()


def parquet() -> bytes:
    rows = [
        {"question": "1+1?", "answer": 1.0, "choices": ["1", "2"], "when": b"x", "deep": {"a": [1], "b": None}}
    ] * 40
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=9)
    return buffer.getvalue()


def arrow() -> bytes:
    batch = pa.RecordBatch.from_pylist([{"question": "1+1?", "answer": 1.0, "choices": ["1", "2"]}] * 9)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


READERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "lines": ("rows.jsonl", lines),
    "array": ("rows.json", lambda: json.dumps(ROWS, indent=1).encode()),
    "document": ("rows.json", lambda: json.dumps({"data": ROWS, "version": 1}).encode()),
    "columns": (
        "rows.json",
        lambda: json.dumps({"question": {"0": "a", "1": "b"}, "answer": {"0": 1, "1": 2}}).encode(),
    ),
    "utf-16": ("rows.jsonl", lambda: lines().decode().encode("utf-16")),
    "gzip": ("rows.jsonl.gz", lambda: gzip.compress(lines(), mtime=0)),
    "zstd": ("rows.jsonl.zst", lambda: pa.compress(lines(), codec="zstd", asbytes=True)),
    "csv": ("rows.csv", lambda: table(",")),
    "tsv": ("rows.tsv", lambda: table("\t")),
    "text": ("rows.txt", lambda: "one\ntwo\u2028\n".encode()),
    "parquet": ("rows.parquet", parquet),
    "arrow": ("rows.arrow", arrow),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to three changes: a piece cut, doubled, moved, replaced or filled in, or a byte flipped."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([0, 1, 2, 8, 64]))
        piece = data[start:end]
        middle = chance.choice(
            [
                b"",
                piece + piece,
                piece[::-1],
                chance.choice(BYTES),
                bytes([chance.randrange(256)]),
                piece + chance.choice(BYTES),
            ]
        )
        data = chance.choice([data[:start] + middle + data[end:]] * 6 + [data[:start], data[start:]])
    return data


def consume(path: Path, **config: Any) -> str:
    """What became of a file: "rows", or "refused"."""
    try:
        records = Records(DataConfig(path=str(path), **config))
        found = list(records)
        assert records.counts.kept == len(found)
        json.dumps([record.prompt.to_json() for record in found], allow_nan=False).encode()
    except UserError:
        return "refused"
    return "rows"


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_ends_in_rows_or_a_user_error(tmp_path: Path, name: str) -> None:
    file, make = READERS[name]
    path, chance, data = tmp_path / file, random.Random(name), make()
    path.write_bytes(data)
    assert consume(path) == "rows"
    ends = set()
    for number in range(NUM_INPUTS):
        path.write_bytes(mutated(data, chance))
        ends.add(consume(path, skip_invalid=number % 2 == 0, split=chance.choice(["train", "train[1:]", "train[-2:]"])))
    assert ends == {"rows", "refused"} or name in ("text", "tsv")


VALUES: list[Any] = [
    None, "", "text", "<think>a", "b\n</think>\nc", "### Human: a ### Assistant: b", "[]", '[{"role": "user"}]', 0, -1, 1.5,
    True, float("nan"), float("inf"), [], [1], ["a", "b"], [[]], [{}], {}, {"a": None}, {"a": 1, "b": 0},
    "\ud800", [True, None],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}], {"text": ["a"], "label": ["A"]},
    [{"from": "human", "value": 3}], [{"name": "f", "parameters": {}}], {"role": "assistant", "content": "c"},
    {"stem": "q", "choices": ["a", "b"]},
]  # fmt: skip


def test_rows_of_any_fields_and_values_end_in_rows_or_a_user_error(tmp_path: Path) -> None:
    chance = random.Random(5)
    fields = sorted(adapters.all_fields())
    lines: list[str] = []
    for _ in range(8 * NUM_INPUTS):
        row = {name: chance.choice(VALUES) for name in chance.sample(fields, chance.randint(1, 6))}
        row |= chance.choice([{}, {"question": "q"}, {"instruction": "q"}, {"prompt": "q"}, {"messages": VALUES[-6]}])
        lines.append(json.dumps(row))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    records = Records(DataConfig(path=str(path), skip_invalid=True))
    kept = sum(1 for _ in records)
    assert kept + sum(records.counts.dropped.values()) == len(lines)
    assert 0 < kept < len(lines)


def test_any_mapping_of_columns_ends_in_rows_or_a_user_error(tmp_path: Path) -> None:
    chance, path = random.Random(6), tmp_path / "rows.jsonl"
    path.write_bytes(lines())
    names = ["question", "answer", "messages", "note", "tools", "chosen", "system", "a.b", "nothing", "", "=", "+"]
    for _ in range(NUM_INPUTS):
        parts = []
        for _ in range(chance.randint(1, 3)):
            columns = "+".join(chance.sample(names, chance.randint(1, 2)))
            parts.append(chance.choice([*TARGETS, "other"]) + chance.choice(["=", "=", "", "=="]) + columns)
        consume(path, columns=",".join(parts), skip_invalid=True)
