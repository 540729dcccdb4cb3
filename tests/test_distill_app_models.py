"""distill_app.py's functions that ask models: labels of a teacher, a student's answers, the comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import distill_app
from distill_lab.errors import ModelError, UserError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All paths are relative, as in the requirements."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def teacher() -> tuple[Any, Any]:
    return distill_app.load_teacher("tiny:teacher")


def test_labelling_with_models_that_are_loaded(
    teacher: tuple[Any, Any], random_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [
        {"instruction": "Make this upper case: pear, cat", "id": 7, "output": "old"},
        {"instruction": "Make this upper case:", "input": "dog, fox"},
    ]
    # The input stands after a blank line, where this teacher has never seen one: only the first answer is sure.
    labelled = distill_app.label_with_teacher(*teacher, items, temperature=0.01)
    assert labelled[0] == {**items[0], "output": "PEAR, CAT"}
    assert labelled[1].keys() == {"instruction", "input", "output"}
    assert items[0]["output"] == "old"
    model, tokenizer = distill_app.load_student(str(random_model()))
    assert distill_app.label_with_teacher(model, tokenizer, items, max_new_tokens=4)[0]["output"] == ""
    assert "2 of 2 answers were cut off at 4 tokens and are left empty" in capsys.readouterr().out
    assert distill_app.label_with_teacher(model, tokenizer, []) == []


def test_students_are_asked_in_their_own_template_or_in_plain_text(teacher: tuple[Any, Any], random_model: Any) -> None:
    assert distill_app.infer_student(*teacher, "Make this upper case: pear, cat") == "PEAR, CAT"
    question = (
        "One of the stamps costs 3 dollars. Leo buys 5 stamps and pays with 90 dollars. "
        "How many dollars does Leo get back?"
    )
    steps = distill_app.infer_student(*teacher, question, "system2").splitlines()
    assert "5 * 3 = 15" in steps[0].replace("3 * 5", "5 * 3")
    assert steps[-1] == "Final Answer: 75"
    model, tokenizer = distill_app.load_student(str(random_model()))
    tokenizer.chat_template = None
    answer = distill_app.infer_student(model, tokenizer, "Say yes.", max_new_tokens=8)
    assert answer == distill_app.infer_student(model, tokenizer, "Say yes.", max_new_tokens=8)
    assert tokenizer.chat_template is None
    with pytest.raises(UserError, match="no answer: the prompt has"):
        distill_app.infer_student(model, tokenizer, "word " * 2000)
    with pytest.raises(ModelError):
        distill_app.load_student("./absent")


def test_comparing(teacher: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = teacher
    distill_app.compare_models(
        ["Make this upper case: pear, cat", "Say pear fox 2 times."],
        teacher_model=model,
        teacher_tokenizer=tokenizer,
        system1_path="tiny:student",
    )
    printed = capsys.readouterr().out
    assert "Model not found at ./distilled-qwen2.5-1.5b-cot\n" in printed
    assert "Make this upper case: pear, cat\n" in printed
    assert "Teacher:\n  PEAR, CAT\n" in printed
    assert printed.count("System 1:\n") == 2
    assert "System 2:" not in printed
    distill_app.compare_models(["Hi"], teacher_path=None, system1_path="./absent", system2_path="./gone")
    assert capsys.readouterr().out.startswith("Model not found at ./absent\nModel not found at ./gone\n")
    with pytest.raises(UserError, match="together with its tokenizer"):
        distill_app.compare_models(["Hi"], sys1_model=model)
