"""training_set.py: what is kept, what is dropped and why, in which order; its rows are what chat.encode trains on."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.training_data.training_set import write_training_set
from distill_lab.types import Completion, Counts, Message, Prompt
from tests.helpers import FAMILY


def ask(name: str, **extra: Any) -> dict[str, Any]:
    return Prompt(name, [{"role": "user", "content": f"question {name}"}]).to_json() | extra


def say(name: str, content: str, sample: int = 0, thinking: str | None = None, reason: Any = "stop") -> dict[str, Any]:
    return Completion(name, sample, content, thinking, reason, 3, "boom" if reason == "error" else None).to_json()


def assistant(content: str, **extra: str) -> Message:
    return {"role": "assistant", "content": content, **extra}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", [ask("a"), ask("b"), ask("c"), ask("d")])
    return tmp_path


def test_samples_become_rows_in_the_order_of_the_prompts(folder: Path) -> None:
    write_jsonl(
        folder / "completions.jsonl",
        [
            say("c", "C0"),
            say("a", "A1", 1),
            say("b", "cut", reason="length"),
            say("a", "A0", 0, "because"),
            say("b", "", 1, reason="error"),
            say("c", " \n", 1),
            say("a", "A1 again", 1),
            say("gone", "G"),
            say("c", "", 2, "only thought"),
        ],
    )
    counts = write_training_set(
        folder / "prompts.jsonl", folder / "train.jsonl", completions=folder / "completions.jsonl"
    )
    assert counts == Counts(9, 3, {"cut at the token limit": 1, "error": 1, "empty": 2, "duplicate": 1, "no prompt": 1})
    assert list(read_jsonl(folder / "train.jsonl")) == [
        {"prompt": ask("a")["messages"], "completion": [assistant("A0", thinking="because")]},
        {"prompt": ask("a")["messages"], "completion": [assistant("A1")]},
        {"prompt": ask("c")["messages"], "completion": [assistant("C0")]},
    ]


def test_the_order_of_the_completions_makes_no_difference(folder: Path) -> None:
    rows = [say(name, f"{name}{sample}", sample) for name in "abcd" for sample in range(3)]
    written = []
    for number, order in enumerate((rows, rows[::-1])):
        write_jsonl(folder / "completions.jsonl", order)
        out = folder / f"train{number}.jsonl"
        write_training_set(folder / "prompts.jsonl", out, completions=folder / "completions.jsonl")
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert written[0].count(b"\n") == 12


def test_blank_lines_and_windows_line_ends_do_not_shift_the_rows(folder: Path) -> None:
    lines = [json.dumps(say(name, f"{name} 世界", 0), ensure_ascii=False) for name in "abcd"]
    (folder / "completions.jsonl").write_bytes("\r\n \t\r\n".join(lines).encode())
    write_training_set(folder / "prompts.jsonl", folder / "train.jsonl", completions=folder / "completions.jsonl")
    rows = list(read_jsonl(folder / "train.jsonl"))
    assert [row["completion"][0]["content"] for row in rows] == [f"{name} 世界" for name in "abcd"]


def test_thinking_is_dropped_on_request(folder: Path) -> None:
    write_jsonl(folder / "graded.jsonl", [say("a", "4", 0, "2+2") | {"grade": {"score": 1.0, "answer": "4"}}])
    write_training_set(
        folder / "prompts.jsonl", folder / "train.jsonl", completions=folder / "graded.jsonl", thinking="drop"
    )
    (row,) = read_jsonl(folder / "train.jsonl")
    assert row["completion"] == [assistant("4")]


def test_own_completions(tmp_path: Path) -> None:
    later = [assistant("A", thinking="hm"), {"role": "user", "content": "and?"}, assistant("B")]
    write_jsonl(
        tmp_path / "prompts.jsonl",
        [
            ask("a", completion=later),
            ask("b"),
            ask("c", completion=[]),
            ask("d", completion=[assistant(" ")]),
            ask("e", completion=[assistant("E"), {"role": "user", "content": "thanks"}]),
            ask("f", completion=None),
        ],
    )
    counts = write_training_set(tmp_path / "prompts.jsonl", tmp_path / "train.jsonl")
    assert counts == Counts(6, 2, {"no completion": 3, "empty": 1})
    assert [row["completion"] for row in read_jsonl(tmp_path / "train.jsonl")] == [later, [assistant("E")]]
    write_training_set(tmp_path / "prompts.jsonl", tmp_path / "train.jsonl", thinking="drop")
    assert next(read_jsonl(tmp_path / "train.jsonl"))["completion"][0] == assistant("A")


def test_no_rows_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b"")
    assert write_training_set(tmp_path / "prompts.jsonl", tmp_path / "train.jsonl") == Counts(0, 0)
    assert (tmp_path / "train.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "a", "sample": 0', "not a JSON object"),
        ('{"id": "a", "sample": 0}', "not a completion: the field 'content' is missing"),
        (json.dumps(say("a", "x") | {"content": None}), "content must be text"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_a_malformed_completion_is_named(folder: Path, line: str, reason: str) -> None:
    path = folder / "completions.jsonl"
    path.write_text(json.dumps(say("a", "fine")) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        write_training_set(folder / "prompts.jsonl", folder / "train.jsonl", completions=path)
    assert (caught.value.source, caught.value.line) == (str(path), 3)
    assert not (folder / "train.jsonl").exists()
    assert sorted(file.name for file in folder.iterdir()) == ["completions.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ask("a"), "the id 'a' comes twice"),
        ({"id": "b"}, "expected a prompt"),
        (ask("b", messages="hello"), "expected a prompt"),
        (ask("b", messages=[{"role": "user", "content": 3}]), "expected a prompt"),
        (ask("b", completion=[{"role": "assistant"}]), "expected the completion as messages"),
    ],
)
def test_a_malformed_prompt_is_named(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(ask("a")) + "\n\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=reason) as caught:
        write_training_set(path, tmp_path / "train.jsonl")
    assert caught.value.line == 3


@pytest.mark.parametrize("own", [True, False])
def test_parquet_holds_the_same_rows(folder: Path, own: bool) -> None:
    import pyarrow.parquet as pq

    if own:
        write_jsonl(folder / "prompts.jsonl", [ask("a", completion=[assistant("世界 🙂", thinking="hm")]), ask("b")])
    else:
        write_jsonl(folder / "completions.jsonl", [say("a", "A"), say("b", "B", 0, "hm")])
    completions = None if own else folder / "completions.jsonl"
    first = write_training_set(folder / "prompts.jsonl", folder / "train.jsonl", completions=completions)
    second = write_training_set(folder / "prompts.jsonl", folder / "train.parquet", completions=completions)
    assert first == second

    def known(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in message.items() if value is not None} for message in messages]

    table = pq.read_table(folder / "train.parquet").to_pylist()
    rows = [{"prompt": known(row["prompt"]), "completion": known(row["completion"])} for row in table]
    assert rows == list(read_jsonl(folder / "train.jsonl"))
    assert rows


def test_memory_does_not_hold_the_texts(tmp_path: Path) -> None:
    number, text = 300, "long text " * 5_000
    write_jsonl(tmp_path / "prompts.jsonl", (ask(f"p{row}") for row in range(number)))
    write_jsonl(tmp_path / "completions.jsonl", (say(f"p{row}", text) for row in range(number)))
    tracemalloc.start()
    counts = write_training_set(
        tmp_path / "prompts.jsonl", tmp_path / "train.jsonl", completions=tmp_path / "completions.jsonl"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts.kept == number
    assert peak < (tmp_path / "completions.jsonl").stat().st_size / 10


def test_its_rows_are_what_is_trained(folder: Path) -> None:
    from transformers import AutoTokenizer

    from distill_lab.chat import encode

    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "student")
    write_jsonl(folder / "completions.jsonl", [say("a", "4", 0, "2+2")])
    write_training_set(folder / "prompts.jsonl", folder / "train.jsonl", completions=folder / "completions.jsonl")
    (row,) = read_jsonl(folder / "train.jsonl")
    encoded = encode(tokenizer, row["prompt"], row["completion"])
    trained = [token for token, flag in zip(encoded.input_ids, encoded.loss_mask, strict=True) if flag]
    assert tokenizer.decode(trained) == "<think>\n2+2\n</think>\n\n4<|im_end|>"
