"""The label grader: where the label is looked for, labels among words, denials, and lists of labels that are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from distill_lab.errors import UserError
from distill_lab.grading.graders import load_grader
from distill_lab.tiny import tasks
from distill_lab.types import Completion, Grade, Prompt


def graded(content: str, gold: str, labels: Any = None) -> Grade:
    meta = {} if labels is None else {"labels": labels}
    return load_grader("label")(Prompt("p-0", [], gold, meta), Completion("p-0", 0, content, None, "stop", 5))


MAIL = ["spam", "not spam"]
LANGUAGES = ["ar", "de", "el", "en", "ot", "zh"]


@pytest.mark.parametrize(
    ("content", "gold", "labels"),
    [
        ("spam", "spam", None),
        ("Spam.", "spam", None),
        ("Final Answer: **Spam**", "spam", None),
        ("It sells pills.\nLabel: spam", "spam", None),
        ("Thoughts.\n\n`en`\n", "en", LANGUAGES),
        ("Final Answer: en", "en", LANGUAGES),
        (r"\boxed{\text{en}}", "en", LANGUAGES),
        ("The text is in German, so the label is de.", "de", LANGUAGES),
        ("This is not spam.", "not spam", ["ham", "not spam", "spam"]),
        ("Not spam", "not spam", MAIL),
        ("ＳＰＡＭ", "spam", MAIL),
        ("这是垃圾邮件", "垃圾邮件", ["垃圾邮件", "正常邮件"]),
        ("very  positive", "Very positive", ["positive", "very positive"]),
    ],
)
def test_right(content: str, gold: str, labels: list[str] | None) -> None:
    found = graded(content, gold, labels)
    assert (found.score, found.status) == (1.0, "ok")


@pytest.mark.parametrize(
    ("content", "gold", "labels", "status"),
    [
        ("ham", "spam", None, "ok"),
        ("spam\nham", "spam", None, "ok"),
        ("not spam", "spam", MAIL, "ok"),
        ("It is not spam at all", "spam", ["spam", "ham"], "unparseable"),
        ("It is never not spam", "not spam", MAIL, "unparseable"),
        ("spam or ham", "spam", ["spam", "ham"], "unparseable"),
        ("It is spam, ham would look otherwise", "spam", ["spam", "ham"], "unparseable"),
        ("spammer", "spam", ["spam", "ham"], "unparseable"),
        ("dental", "de", LANGUAGES, "unparseable"),
        ("", "spam", None, "unparseable"),
        ("...", "spam", None, "unparseable"),
    ],
)
def test_wrong(content: str, gold: str, labels: list[str] | None, status: str) -> None:
    found = graded(content, gold, labels)
    assert (found.score, found.status) == (0.0, status)


def test_the_label_is_spelled_as_in_the_list() -> None:
    assert graded("I say: DE!", "de", LANGUAGES).answer == "de"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("en, de", "must be a non-empty list of texts"),
        ([], "must be a non-empty list of texts"),
        ([1], "must be a non-empty list of texts"),
        (["de"], "gold label 'en' is not"),
    ],
)
def test_a_wrong_list_of_labels_is_refused_by_name(labels: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"prompt p-0: .*{words}"):
        graded("en", "en", labels)


def test_gold_labels_of_the_tiny_task() -> None:
    rows = [row for row, _ in zip(tasks.rows("labels", "train"), range(500), strict=False)]
    known = sorted({row["answer"] for row in rows})
    assert len(known) == 13
    for row in rows:
        text = row["messages"][-1]["content"] if row["messages"][-1]["role"] == "assistant" else row["answer"]
        for labels in (None, known):
            assert graded(text, row["answer"], labels).score == 1.0
            assert graded(f"So.\nFinal Answer: {row['answer']}", row["answer"], labels).score == 1.0
