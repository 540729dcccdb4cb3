"""`--data.columns` maps any row; an unknown target or column is named with those that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.errors import UserError
from distill_lab.types import Record

ROW: dict[str, Any] = {
    "title": "Sum",
    "body": "1+1?",
    "gold": 2,
    "result": {"text": "It is 2."},
    "thoughts": "one and one",
    "role": "Be brief.",
    "facts": "1 and 1 are numbers.",
    "level": 3,
}


def read(tmp_path: Path, columns: Any, *rows: dict[str, Any]) -> list[Record]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or (ROW,)))
    return list(Records(DataConfig(path=str(path), columns=columns)))


def test_all_targets(tmp_path: Path) -> None:
    columns = "prompt=title+body, completion=result.text, answer=gold, thinking=thoughts, system=role, "
    columns += "context=facts, ignore=level"
    (record,) = read(tmp_path, columns)
    assert record.prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 and 1 are numbers.\n\nSum\n\n1+1?"},
    ]
    assert record.completion == [{"role": "assistant", "content": "It is 2.", "thinking": "one and one"}]
    assert (record.prompt.answer, record.prompt.meta) == ("2", {})


def test_a_mapping_of_yaml_is_the_same_as_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": "body", "answer": "gold"}) == read(tmp_path, "prompt=body,answer=gold")


def test_choices_messages_and_preferences(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "prompt=q,choices=c,answer=a", {"q": "q", "c": ["red", "blue"], "a": 1})
    assert (record.prompt.messages[0]["content"], record.prompt.answer) == ("q\n\nA. red\nB. blue", "B")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (record,) = read(tmp_path, "messages=chat,tools=t", {"chat": turns, "t": [{"name": "f"}]})
    assert record.prompt.messages[0]["content"].startswith("# Tools")
    (record,) = read(tmp_path, "chosen=good,rejected=bad", {"question": "q", "good": "b", "bad": "c"})
    assert (record.completion, record.prompt.meta) == ([{"role": "assistant", "content": "b"}], {"rejected": "c"})


def test_a_column_with_the_name_of_a_target_is_kept(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "prompt=body,answer=gold", {"body": "q", "gold": 1, "answer": "other"})
    assert (record.prompt.answer, record.prompt.meta) == ("1", {"answer (not mapped)": "other"})


def test_columns_that_only_some_rows_have(tmp_path: Path) -> None:
    first, second = read(tmp_path, "prompt=q,answer=gold", {"q": "a"}, {"q": "b", "gold": 2})
    assert (first.prompt.answer, second.prompt.answer) == (None, "2")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("prompt=nothing", "no column 'nothing' for --data.columns; the columns found are body, facts, gold, level"),
        ("prompt=body,answer=a.b", "no column 'a.b'"),
        ("question=body", "no target 'question'; choose from prompt, completion, answer"),
        ("prompt", "'prompt' is not TARGET=COLUMN; write prompt=question,answer=gold"),
        ("prompt=", "is not TARGET=COLUMN"),
        ("prompt=body,prompt=title", r"'prompt' occurs twice; join columns with \+: prompt=a\+b"),
        ("answer=gold+level", "'answer' is one column; only texts can be joined"),
    ],
)
def test_a_wrong_mapping_is_named(tmp_path: Path, columns: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(tmp_path, columns)


def test_what_is_not_mapped_but_means_something_is_refused(tmp_path: Path) -> None:
    row = {"body": "q", "gold": 1, "image": "a.png"}
    with pytest.raises(UserError, match=r"'image', which the lab cannot read; .*--data\.columns ignore=image"):
        read(tmp_path, "prompt=body,answer=gold", row)
    (record,) = read(tmp_path, "prompt=body,answer=gold,ignore=image", row)
    assert record.prompt.meta == {}
