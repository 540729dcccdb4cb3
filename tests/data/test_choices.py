"""Multiple choice: the prompt shows the choices, and the gold answer is the label of the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.types import Record

TEXTS = ["red", "green", "blue", "black"]
SHOWN = "q\n\nA. red\nB. green\nC. blue\nD. black"
LABELED = dict(zip("ABCD", TEXTS, strict=True))


def read(tmp_path: Path, row: dict[str, Any]) -> Record:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = Records(DataConfig(path=str(path)))
    return record


FORMS = [
    {"question": "q", "choices": TEXTS, "answer": 1},
    {"question": "q", "choices": TEXTS, "answer": "B"},
    {"question": "q", "choices": TEXTS, "answer": "(b)"},
    {"question": "q", "choices": TEXTS, "answer": "1"},
    {"question": "q", "choices": TEXTS, "answer": "green"},
    {"question": "q", "choices": TEXTS, "answer": 1.0},
    {"question": "q", "choices": TEXTS, "answer": [1]},
    {"question": "q", "choices": TEXTS, "label": 1},
    {"question": "q", "choices": str(TEXTS), "answer": "1"},
    {"question": "q", "choices": json.dumps(TEXTS), "answer": "B"},
    {"question": "q", "options": LABELED, "answer": "B"},
    {"question": "q", "options": LABELED, "answer_idx": "B", "answer": "green"},
    {"question": "q", "options": LABELED | {"E": None}, "answer": "B. green"},
    {"question": "q", "options": [f"{label}) {text}" for label, text in LABELED.items()], "correct": "B"},
    {"question": "q", "choices": {"text": TEXTS, "label": list("ABCD")}, "answerKey": "B"},
    {"question": {"stem": "q", "choices": [{"text": t, "label": n} for n, t in LABELED.items()]}, "answerKey": "B"},
    {"question": "q", "options": [{"key": n, "value": t} for n, t in LABELED.items()], "answer": "B"},
    {"question": "q", **LABELED, "answer": "B"},
    {"Question": "q", **LABELED, "Answer": "B"},
    {"question": "q", **{f"option_{n.lower()}": t for n, t in LABELED.items()}, "correct_option": "B"},
    {"question": "q", "opa": "red", "opb": "green", "opc": "blue", "opd": "black", "cop": 1},
    {"input": "q", "target_scores": {"red": 0, "green": 1, "blue": 0, "black": 0}, "target": "green"},
    {"prompt": "q", "choices": TEXTS, "answer": 1},
]


@pytest.mark.parametrize("row", FORMS)
def test_every_form_of_choices(tmp_path: Path, row: dict[str, Any]) -> None:
    record = read(tmp_path, row)
    assert record.prompt.messages == [{"role": "user", "content": SHOWN}]
    assert record.prompt.answer == "B"


def test_choices_keep_their_labels(tmp_path: Path) -> None:
    row = {"question": "q", "choices": {"text": ["red", "green", "blue"], "label": ["1", "2", "3"]}, "answerKey": "2"}
    record = read(tmp_path, row)
    assert record.prompt.messages[0]["content"] == "q\n\n1. red\n2. green\n3. blue"
    assert record.prompt.answer == "2"
    record = read(tmp_path, {"question": "q _ x", "option1": "red", "option2": "green", "answer": "2"})
    assert (record.prompt.messages[0]["content"], record.prompt.answer) == ("q _ x\n\n1. red\n2. green", "2")


def test_choices_that_the_question_shows_are_not_repeated(tmp_path: Path) -> None:
    question = "q\n(A) red\n(B) green"
    record = read(tmp_path, {"question": question, "choices": ["(A) red", "(B) green"], "answer": "(B)"})
    assert (record.prompt.messages[0]["content"], record.prompt.answer) == (question, "B")


def test_choices_as_a_text_are_shown_as_they_are(tmp_path: Path) -> None:
    record = read(tmp_path, {"question": "q", "options": "a ) red , b ) green", "correct": "b", "answer": "b"})
    assert (record.prompt.messages[0]["content"], record.prompt.answer) == ("q\n\na ) red , b ) green", "b")
    assert read(tmp_path, {"Problem": "q", "options": "a ) red , b ) green", "correct": "b"}).prompt.answer == "b"


REFUSED = [
    ({"question": "q", "choices": TEXTS, "answer": 4}, "'answer' is 4, but the choices are numbered from 0 to 3"),
    ({"question": "q", "choices": TEXTS, "answer": "yellow"}, "'yellow', which is not one of the choices A, B, C, D"),
    ({"question": "q", "choices": ["1", "2", "3"], "answer": "2"}, "may mean the choices B and C"),
    ({"question": "q", "choices": ["B", "A"], "answer": "A"}, "may mean the choices A and B"),
    ({"question": "q", "choices": TEXTS, "answer": 1, "answerKey": "C"}, "mean different choices"),
    ({"question": "q", "choices": TEXTS, "answer": ["A", "C"]}, "'answer' is list"),
    ({"question": "q", "choices": TEXTS, "answer": True}, "'answer' is bool"),
    ({"question": "q", "choices": ["red"], "answer": 0}, "at least two choices"),
    ({"question": "q", "choices": ["red", ""], "answer": 0}, "a choice that is empty"),
    ({"question": "q", "choices": {"text": TEXTS, "label": ["A"]}, "answer": 0}, "4 texts, but not as many labels"),
    ({"question": "q", "choices": 4, "answer": 0}, "'choices' is int"),
    ({"input": "q", "target_scores": {"red": 1, "green": 1}, "target": "red"}, "exactly one choice"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_a_gold_answer_that_does_not_fit_the_choices_is_refused(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, row)


def test_a_hidden_label_is_no_gold_answer(tmp_path: Path) -> None:
    assert read(tmp_path, {"question": "q", "choices": TEXTS, "label": -1}).prompt.answer is None
