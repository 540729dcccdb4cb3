"""contamination.py: what overlaps with a test prompt and what does not, in many scripts, and templates that survive."""

from __future__ import annotations

import json
import random
import unicodedata
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from distill_lab.data.contamination import NEAR, SAME, TestPrompts, find_overlaps, remove_overlaps, shares_words
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.tiny import tasks
from distill_lab.types import Message
from tests.helpers import ROOT

SHARED = shares_words(8)
MATH = ROOT.parent / "shared" / "data" / "math"
BAKER = "A baker makes 12 loaves every morning and sells 7 of them before noon. How many loaves are left in the shop?"
NFD = partial(unicodedata.normalize, "NFD")
APPLES = "小明有3个苹果，小红给了他5个苹果，后来他吃了2个。请问小明现在还有多少个苹果？"


def row(text: str, id: str = "r", *, system: str = "", completion: list[Message] | None = None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"id": id, "messages": [*messages, {"role": "user", "content": text}]} | (
        {"completion": completion} if completion else {}
    )


def overlaps(test: list[str], training: list[str], *, num_words: int = 8) -> list[str]:
    """The reason for each training text; empty if it stays."""
    tests = TestPrompts((row(text, f"t{number}") for number, text in enumerate(test)), num_words=num_words)
    rows = [row(text) for text in training]
    for each in rows:
        tests.count(each)
    return [found.reason if (found := tests.find(each)) else "" for each in rows]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (BAKER.upper(), SAME),
        (f"  {BAKER.replace(' ', chr(10))}\t", SAME),
        (BAKER.replace(".", "").replace("?", " ?!"), SAME),
        (BAKER.replace(" ", "\u00a0").replace("12", "１２"), SAME),
        (BAKER.replace("baker", "cook"), SHARED),
        (BAKER + " Explain each step with care, please.", SHARED),
        ("Here is a little riddle. " + BAKER, SHARED),
        (BAKER.replace(". How", ". It rains. How"), SHARED),
        ("She buys many and sells 7 of them before noon, so what?", ""),
        ("She buys many and sells 7 of them before noon. How nice", SHARED),
        ("A farmer has 30 sheep and buys 4 more every year. How many sheep does he have after 3 years?", ""),
    ],
)
def test_changes_of_a_test_prompt(changed: str, reason: str) -> None:
    assert overlaps([BAKER], [changed]) == [reason]


@pytest.mark.parametrize(
    ("test", "changed", "reason"),
    [
        (APPLES, APPLES.replace("，", ",").replace("。", " . "), SAME),
        (APPLES, APPLES.replace("后来", "然后"), SHARED),
        (APPLES, "小红有8支铅笔，她又买了4支，然后送给同学6支。她还剩几支铅笔？", ""),
        ("请把这句话翻译成英文：今天天气很好。", "请把这句话翻成英文：今天天气很好", NEAR),
        ("İstanbul'da KIZ kardeşim ne yapıyor", "istanbul'da kız kardeşim ne yapıyor?", SAME),
        ("Où est le café près de la gare du Nord", NFD("OÙ EST LE CAFÉ PRÈS DE LA GARE DU NORD"), SAME),
        ("वह सुबह घर में किताब पढ़ती है", "वह सुबह घर में किताब पढ़ती है।", SAME),
        ("เขาดื่มชาที่บ้านตอนเช้าทุกวัน", "เขาดื่มชา ที่บ้าน ตอนเช้าทุกวัน!", SAME),
        ("What is 3 + 5?", "what is 3+5", SAME),
        ("What is 3 + 5?", "What is 3 - 5?", ""),
        ("What is 0.5 of 12?", "What is 5 of 12?", ""),
        ("Who wrote Hamlet?", "Who wrote Hamlet? Answer in one word.", SHARED),
        ("Who wrote Hamlet? Answer in one word.", "who wrote hamlet", SHARED),
        ("Name the capital of France.", "Name the capital of Spain.", ""),
        ("cat", "The cat sat on the mat.", ""),
        ("cat", "CAT!", SAME),
        ("???", "???", SAME),
        ("???", "!!!", ""),
    ],
)  # fmt: skip
def test_other_scripts_and_short_texts(test: str, changed: str, reason: str) -> None:
    assert overlaps([test], [changed]) == [reason]


def test_the_number_of_words_can_be_set() -> None:
    shared = "She buys many and sells 7 of them before noon, so what?"  # seven words in a row
    assert overlaps([BAKER], [shared], num_words=7) == [shares_words(7)]
    assert overlaps([BAKER], [shared, BAKER + " Explain each step.", BAKER.upper()], num_words=0) == ["", "", ""]
    assert overlaps([BAKER], [BAKER], num_words=0) == [SAME]


def test_system_prompts_do_not_count_and_later_turns_do() -> None:
    tests = TestPrompts([row(BAKER, "t", system="Be brief.")])
    later = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": BAKER}]
    for each in (row(BAKER), row(BAKER, system="Be kind."), row("Hi!", completion=later)):
        tests.count(each)
        found = tests.find(each)
        assert found is not None
        assert (found.reason, found.test_id, found.text) == (SAME, "t", BAKER)


TEMPLATE = (
    "Translate the following sentence from English into French, keep the tone, and write nothing else but the "
    "translation itself: {}"
)
NOUNS = """teacher garden river window doctor market bridge kitchen letter morning summer village engine picture ladder
basket farmer castle pocket soldier mirror blanket bottle candle carpet desert forest guitar hammer island jacket""".split()


@pytest.mark.parametrize("number", [20, 400])
def test_a_template_that_all_prompts_share_removes_nothing_by_itself(number: int) -> None:
    draw = random.Random(0)
    sentences = [f"The {a} saw the {b} near the {c}." for a, b, c in (draw.sample(NOUNS, 3) for _ in range(2 * number))]
    sentences = list(dict.fromkeys(sentences))
    prompts = [TEMPLATE.format(sentence) for sentence in sentences]
    half = len(prompts) // 2
    assert sum(map(bool, overlaps(prompts[:half], prompts[half:]))) <= 0.02 * half + 1
    planted = [TEMPLATE.format(sentence).lower() for sentence in sentences[:10]]
    assert overlaps(prompts[:half], [*prompts[half:], *planted])[-10:] == [SAME] * 10


@pytest.mark.parametrize(
    ("task", "num_rows", "num_test", "most"),
    [("problems", 3000, 300, 0.03), ("instructions", 3000, 300, 0.02), ("labels", 1000, 200, 0.15)],
)  # fmt: skip
def test_the_tiny_tasks_keep_their_rows(task: str, num_rows: int, num_test: int, most: float) -> None:
    """Problems made from templates; most of what the labels lose differs only in its punctuation."""
    test, training = (
        [item["messages"][0]["content"] for item in islice(tasks.rows(task, split), number)]
        for split, number in (("test", num_test), ("distill", num_rows))
    )
    assert sum(map(bool, overlaps(test, training))) <= most * num_rows


@pytest.mark.skipif(not MATH.is_dir(), reason="needs the public problems in ../shared/data")
def test_unrelated_real_problems_stay() -> None:
    texts = [json.loads(line)["question"] for line in (MATH / "gsm8k_train.jsonl").open(encoding="utf-8")]
    assert sum(map(bool, overlaps(texts[200:300], texts[:200]))) < 0.03 * 200
    assert sum(map(bool, overlaps(texts[3000:3200], texts[:3000]))) < 0.005 * 3000


def test_rows_are_removed_and_counted_by_reason(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("test", "rows", "overlap", "kept")}
    write_jsonl(files["test"], [row(BAKER, "t")])
    training = [BAKER.upper(), "Who wrote Hamlet?", BAKER + " Explain.", "Name a river."]
    # Training rows have no ids; they are known by their place.
    write_jsonl(files["rows"], [{"prompt": row(text)["messages"], "completion": []} for text in training])
    assert find_overlaps(files["rows"], files["test"], files["overlap"]) == 2
    counts = remove_overlaps(files["rows"], files["overlap"], files["kept"])
    assert (counts.rows_in, counts.kept, counts.dropped) == (4, 2, {SAME: 1, SHARED: 1})
    assert [each["prompt"][0]["content"] for each in read_jsonl(files["kept"])] == [training[1], training[3]]
    pairs = list(read_jsonl(files["overlap"]))
    assert [(pair["id"], pair["test_id"], pair["test_text"]) for pair in pairs] == [(0, "t", BAKER), (2, "t", BAKER)]


def test_without_a_test_nothing_is_removed(tmp_path: Path) -> None:
    rows, test, overlap, kept = (tmp_path / name for name in "abcd")
    write_jsonl(rows, [row(BAKER)])
    write_jsonl(test, [])
    assert find_overlaps(rows, test, overlap) == 0
    assert remove_overlaps(rows, overlap, kept).kept == 1


def test_copies_of_a_test_prompt_do_not_hide_its_variants() -> None:
    """A prompt that many training rows copy does not become boilerplate."""
    variants = [BAKER.upper()] * 50 + [BAKER.replace("morning", "night") + f" Variant {word}." for word in NOUNS[:3]]
    assert all(overlaps([BAKER], variants))
