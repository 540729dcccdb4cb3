"""All test items on the page: every one is there, in the right groups, cut with a mark only if all would be too much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.report import items as module
from distill_lab.report.document import json_block
from distill_lab.report.items import CHUNK, KINDS, Items
from distill_lab.report.page import read_answers
from tests.helpers import eval_row
from tests.made_runs import HOSTILE, made_run


def read(run: Path, **more: Any) -> Items:
    found = Items.read(run, read_answers(run), **({"similarity": False, "by_label": False} | more))
    assert found is not None
    return found


def data_of(found: Items) -> dict[str, Any]:
    return found.data()


def bits(*titles: str) -> int:
    return sum(kind.bit for kind in KINDS if kind.title.split(":")[0].split()[0] in titles)


def test_every_item_is_in_the_data_with_its_texts(tmp_path: Path) -> None:
    run = made_run(tmp_path, num=CHUNK + 7)
    found = read(run)
    data = data_of(found)
    assert list(data) == ["items-index", "items-0", "items-1"]
    rows = data["items-0"] + data["items-1"]
    assert [len(data["items-0"]), len(rows)] == [CHUNK, CHUNK + 7]
    on_disk = {name: list(read_jsonl(tmp_path / "eval" / f"{name}.jsonl")) for name in ("teacher", "base", "student")}
    for place, (prompt, gold, answers) in enumerate(rows):
        assert data["items-index"]["ids"][place] == on_disk["student"][place]["id"]
        assert prompt == on_disk["student"][place]["prompt"][0]["content"]
        assert gold == on_disk["student"][place]["answer"]
        for (name, _), answer in zip(data["items-index"]["models"], answers, strict=True):
            row = on_disk[name][place]
            assert answer == [
                row["output"], row["thinking"], row["grade"]["score"], row["num_tokens"], row["finish_reason"],
            ]  # fmt: skip


def test_the_kinds_of_an_item_come_from_the_scores(tmp_path: Path) -> None:
    scores = {  # teacher, base, student
        "kept": (1.0, 1.0, 1.0), "learned": (1.0, 0.0, 1.0), "lost": (1.0, 1.0, 0.0), "won": (0.0, 0.0, 1.0),
        "wrong": (0.0, 0.0, 0.0),
    }  # fmt: skip
    (tmp_path / "eval").mkdir()
    for place, name in enumerate(("teacher", "base", "student")):
        write_jsonl(tmp_path / "eval" / f"{name}.jsonl", [eval_row(key, of[place]) for key, of in scores.items()])
    found = read(tmp_path)
    assert dict(zip(found.ids, found.kinds, strict=True)) == {
        "kept": bits("Right"),
        "learned": bits("Learned", "Right"),
        "lost": bits("Lost", "Forgotten", "Wrong"),
        "won": bits("Won", "Learned", "Right"),
        "wrong": bits("Wrong"),
    }
    titles = {title.split(":")[0]: number for _, title, number in data_of(found)["items-index"]["titles"]}
    assert titles == {
        "Lost": 1, "Won": 1, "Learned": 2, "Forgotten": 1, "Wrong": 2, "Right": 3,
        "Won: the student does better than the teacher".split(":")[0]: 1,
    }  # fmt: skip
    similarity = data_of(read(tmp_path, similarity=True))["items-index"]["titles"]
    assert not [title for _, title, _ in similarity if "Wrong" in title or "Right" in title or "Lost" in title]


def test_cut_missing_and_unreadable_answers_are_found(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    odd = [
        eval_row("cut", 0.0, finish_reason="length"),
        eval_row("missing", 0.0, finish_reason="missing"),
        eval_row("unread", 0.0, grade={"score": 0.0, "answer": None, "status": "unparseable"}),
    ]
    write_jsonl(tmp_path / "eval" / "student.jsonl", odd)
    found = read(tmp_path)
    assert found.kinds == [bits("Wrong", "Cut"), bits("Wrong", "Missing,"), bits("Wrong", "Missing,")]
    assert data_of(found)["items-index"]["models"] == [["student", "Student"]]


def test_fields_of_the_test_rows_are_filters(tmp_path: Path) -> None:
    fields = data_of(read(made_run(tmp_path, num=24)))["items-index"]["fields"]
    assert [name for name, _, _ in fields] == ["level", "type"]
    assert fields[0][1:] == [["1", "2", "3", "4"], [place % 4 for place in range(24)]]
    found = read(made_run(tmp_path / "labels", num=24, words=1), by_label=True)
    assert "label" in found.fields


def test_texts_are_cut_with_a_mark_if_all_would_be_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path, num=20, output=" x" * 1500)
    assert read(run).num_cut == 0
    monkeypatch.setattr(module, "MAX_PAGE_CHARS", 20 * 8 * 1000)
    found = read(run)
    assert (found.limit, found.num_cut) == (1000, 20 * 5 + 10 * 3)
    answer = found.rows[0][2][0]
    assert answer is not None
    text = answer[0]
    assert isinstance(text, str)
    assert text[:1000] in "".join(row["output"] for row in read_jsonl(run / "eval" / "teacher.jsonl"))
    assert text.endswith(" more characters]")
    assert f"{found.num_cut} texts are longer than 1,000 characters and cut here." in found.section()


def test_what_a_model_says_stays_text(tmp_path: Path) -> None:
    found = read(made_run(tmp_path, num=3, output=HOSTILE))
    block = json_block(data_of(found)["items-0"])
    assert "<" not in block
    assert not set("\x1b\u202e\u2028\ud800") & set(block)
    [prompt, *_] = json.loads(block)[0]
    assert prompt.endswith("\\input{/etc}")
    assert "<img src=x onerror=" in prompt


def test_a_run_whose_student_was_not_scored_has_none(tmp_path: Path) -> None:
    assert Items.read(tmp_path, {}, similarity=False, by_label=False) is None
