"""Gold answers are the text that the file's author meant, whatever the type of the column."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.errors import UserError


def golds(path: Path) -> list[str | None]:
    return [record.prompt.answer for record in Records(DataConfig(path=str(path)))]


def arrow(path: Path, answers: pa.Array, metadata: dict[str, Any] | None = None) -> Path:
    table = pa.table({"question": ["q"] * len(answers), "answer": answers})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    pq.write_table(table, path)
    return path


COLUMNS = [
    (pa.array([0.1, 43, -2.5e-5, 16777216], pa.float32()), ["0.1", "43", "-2.5e-05", "16777216"]),
    (pa.array([0.1, 43.0, 1e22, 0.5], pa.float64()), ["0.1", "43", "10000000000000000000000", "0.5"]),
    (pa.array([1.5, 2.0], pa.float16()), ["1.5", "2"]),
    (pa.array([1, -7, 2**62], pa.int64()), ["1", "-7", str(2**62)]),
    (pa.array([3], pa.uint8()), ["3"]),
    (pa.array([True, False]), ["True", "False"]),
    (pa.array([decimal.Decimal("1.50"), decimal.Decimal("-3.00")], pa.decimal128(6, 2)), ["1.50", "-3.00"]),
    (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    (pa.array(["a", None], pa.large_string()), ["a", None]),
    (pa.array([b"a", b"\xc3\xa9"], pa.binary()), ["a", "é"]),
    (pa.array([0], pa.date32()), ["1970-01-01"]),
    (pa.array([["a"]], pa.list_(pa.string())), ["a"]),
    (pa.array([float("nan"), 1.0], pa.float64()), [None, "1"]),
]


@pytest.mark.parametrize(("answers", "wanted"), COLUMNS)
def test_gold_of_every_column_type(tmp_path: Path, answers: pa.Array, wanted: list[str | None]) -> None:
    assert golds(arrow(tmp_path / "rows.parquet", answers)) == wanted


def test_a_class_label_is_its_name(tmp_path: Path) -> None:
    features = {
        "question": {"dtype": "string", "_type": "Value"},
        "answer": {"names": ["ham", "spam"], "_type": "ClassLabel"},
    }
    assert golds(arrow(tmp_path / "rows.parquet", pa.array([1, 0, -1]), features)) == ["spam", "ham", None]


def test_labels_and_short_floats_inside_of_lists_and_objects(tmp_path: Path) -> None:
    label = {"names": ["ham", "spam"], "_type": "ClassLabel"}
    features = {
        "question": {"dtype": "string", "_type": "Value"},
        "tags": {"feature": label, "_type": "List"},
        "about": {"kind": label, "score": {"dtype": "float32", "_type": "Value"}},
    }
    about = pa.struct([("kind", pa.int64()), ("score", pa.float32())])
    table = pa.table(
        {
            "question": ["q"],
            "tags": pa.array([[1, 0]]),
            "about": pa.array([{"kind": 1, "score": 0.1}], about),
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "rows.parquet")
    (record,) = Records(DataConfig(path=str(tmp_path / "rows.parquet")))
    assert record.prompt.meta == {"tags": ["spam", "ham"], "about": {"kind": "spam", "score": 0.1}, "map": {"a": 1}}


def test_one_value_that_cannot_be_converted_refuses_its_row_alone(tmp_path: Path) -> None:
    late = pa.array([0, 10**18, 0], pa.timestamp("us"))
    table = pa.table({"question": ["a", "b", "c"], "answer": ["1", "2", "3"], "when": late})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert golds(tmp_path / "rows.parquet") == ["1", "2", "3"]
    pq.write_table(table.drop_columns(["answer"]).rename_columns(["question", "answer"]), tmp_path / "rows.parquet")
    records = Records(DataConfig(path=str(tmp_path / "rows.parquet"), skip_invalid=True))
    assert [record.prompt.id for record in records] == ["train-0", "train-2"]
    assert "field 'answer' cannot be read" in str(records.invalid[0])


JSON = [
    (True, "True"), (False, "False"), (0, "0"), (43.0, "43"), (0.1, "0.1"), (" x ", " x "), (["4"], "4"),
    ({"text": ["a", "b"]}, "a"), ({"value": "a", "aliases": ["b"]}, "a"), (None, None), ("", None), ([], None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "gold"), JSON)
def test_gold_of_every_json_type(tmp_path: Path, value: Any, gold: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": value}))
    assert golds(path) == [gold]


@pytest.mark.parametrize(
    "field",
    "answer true_answer gold_answer gtruth_answer final_answer expected_answer correct_answer ground_truth gold".split(),
)
def test_names_of_gold_answers(tmp_path: Path, field: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"question,{field}\nq,4\n")
    assert golds(path) == ["4"]


@pytest.mark.parametrize("mark", ["\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\u2029"])
def test_a_gold_file_is_cut_at_line_ends_alone(tmp_path: Path, mark: str) -> None:
    from distill_lab.files.jsonl import read_jsonl, write_jsonl
    from distill_lab.training_data.prompt_distillation import write_gold
    from distill_lab.types import Prompt

    prompts = [Prompt(f"train-{number}", [{"role": "user", "content": "q"}]).to_json() for number in range(3)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "gold.txt").write_bytes(f"a{mark}b\r\nc\rd\n".encode())
    write_gold(tmp_path / "prompts.jsonl", tmp_path / "out.jsonl", gold=str(tmp_path / "gold.txt"))
    assert [row["answer"] for row in read_jsonl(tmp_path / "out.jsonl")] == [f"a{mark}b", "c", "d"]
    (tmp_path / "rows.txt").write_bytes(f"a{mark}b\r\nc\rd\n".encode())
    texts = [record.prompt.messages[0]["content"] for record in Records(DataConfig(path=str(tmp_path / "rows.txt")))]
    assert texts == [f"a{mark}b", "c", "d"]


def test_a_blank_line_in_a_gold_file_is_named(tmp_path: Path) -> None:
    from distill_lab.files.jsonl import write_jsonl
    from distill_lab.training_data.prompt_distillation import write_gold
    from distill_lab.types import Prompt

    write_jsonl(tmp_path / "p.jsonl", [Prompt("train-0", [{"role": "user", "content": "q"}]).to_json()])
    (tmp_path / "gold.txt").write_text("a\n\nb\n\n")
    with pytest.raises(UserError, match=r"no gold answer in line 2, which is blank; give one line per row"):
        write_gold(tmp_path / "p.jsonl", tmp_path / "out.jsonl", gold=str(tmp_path / "gold.txt"))
    assert not (tmp_path / "out.jsonl").exists()
