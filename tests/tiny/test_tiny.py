"""The tiny family: splits never meet, gold answers are right, shipped weights do what their table says."""

from __future__ import annotations

import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from distill_lab.chat import encode, prompt_ids
from distill_lab.errors import UserError
from distill_lab.tiny import FAMILY, instructions, labels, tasks
from scripts.tiny_family.build import NO_THINKING, render

pytestmark = pytest.mark.slow

TASKS = list(tasks.TASKS)


def take(task: str, split: str, number: int) -> list[tasks.Item]:
    return list(itertools.islice(tasks.items(task, split), number))


@pytest.mark.parametrize("task", TASKS)
def test_splits_never_meet_and_items_are_distinct(task: str) -> None:
    numbers = {"train": 4000, "distill": 3000, "test": 800}
    questions = {split: [item["question"] for item in take(task, split, number)] for split, number in numbers.items()}
    for split, asked in questions.items():
        assert len(set(asked)) == numbers[split]
        assert {tasks.split_of(question) for question in asked} == {split}
    assert not set(questions["train"]) & set(questions["distill"])
    assert not set(questions["test"]) & (set(questions["train"]) | set(questions["distill"]))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_items(task: str) -> None:
    assert take(task, "test", 50) == take(task, "test", 50)
    assert take(task, "test", 50) != list(itertools.islice(tasks.items(task, "test", seed=1), 50))


def test_splits_do_not_depend_on_spacing() -> None:
    assert tasks.split_of("a  b\nc ") == tasks.split_of("a b c")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="tiny:instructions"):
        next(tasks.items("nothing", "test"))
    with pytest.raises(UserError, match="distill"):
        next(tasks.items("labels", "validation"))


def test_a_split_that_is_used_up_says_so() -> None:
    with pytest.raises(UserError, match="distinct items"):
        take("labels", "test", 100_000)


def test_there_are_enough_kinds() -> None:
    assert len(instructions.KINDS) >= 8
    assert {item["meta"]["type"] for item in take("instructions", "test", 400)} == set(instructions.KINDS)
    assert {item["meta"]["level"] for item in take("problems", "test", 400)} == {1, 2, 3, 4}
    assert {item["answer"] for item in take("labels", "test", 400)} == set(labels.LABELS)
    assert len(labels.LABELS) == 13


def test_every_equation_of_a_solution_is_right_and_leads_to_the_answer() -> None:
    for item in take("problems", "test", 500):
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", item["output"])
        assert len(equations) == item["meta"]["level"]
        for left, sign, right, result in equations:
            a, b = Fraction(left), Fraction(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == Fraction(result)
        assert equations[-1][3] == item["answer"]
        assert item["output"].endswith(f"Final Answer: {item['answer']}")


def test_numbers_of_a_solution_come_from_the_question_or_an_earlier_step() -> None:
    for item in take("problems", "distill", 500):
        known = set(re.findall(r"\d+", item["question"]))
        for left, right, result in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)", item["output"]):
            assert {left, right} <= known
            known.add(result)


def test_instruction_answers() -> None:
    rng = random.Random(3)
    for _ in range(300):
        question, answer = instructions._sort(rng)
        assert sorted(question.split(": ")[1].split(", ")) == answer.split(", ")
        question, answer = instructions._json(rng)
        name, age, city = re.findall(r": (\w+) is (\d+) and lives in (\w+)\.", question)[0]
        assert json.loads(answer) == {"name": name, "age": int(age), "city": city}
    assert [instructions.plural(word) for word in ("fox", "cherry", "mouse", "brush", "mango", "cat")] == [
        "foxes", "cherries", "mice", "brushes", "mangoes", "cats",
    ]  # fmt: skip


def test_the_rules_prompt_has_200_to_400_tokens() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "teacher")
    assert 200 <= len(tokenizer(labels.RULES)["input_ids"]) <= 400


def test_the_family_was_trained_in_the_form_the_chat_template_gives() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "teacher")
    for task in TASKS:
        for number, item in enumerate(take(task, "train", 40)):
            prefix, prompt, completion = render(task, item, random.Random(number), bare_labels=False)
            thinking = NO_THINKING not in prompt
            turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", prefix + prompt, re.DOTALL)
            messages = [{"role": role, "content": content} for role, content in turns]
            ids = tokenizer(prefix + prompt)["input_ids"]
            assert prompt_ids(tokenizer, messages, thinking=None if thinking else False) == ids
            answer = {"role": "assistant", "content": completion.removesuffix("<|im_end|>").split("</think>\n\n")[-1]}
            if thinking:
                answer["thinking"] = item["thinking"]
            encoded = encode(tokenizer, messages, [answer], thinking=None if thinking else False)
            assert encoded.input_ids == ids + tokenizer(completion)["input_ids"]


def weights(member: str) -> Path:
    return FAMILY / member / "model.safetensors"


def test_the_family_is_small_and_the_student_smaller() -> None:
    from safetensors import safe_open

    sizes = {}
    for member in ("teacher", "student"):
        with safe_open(weights(member), framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
        assert {str(tensor.dtype) for tensor in tensors} == {"torch.float16"}
        sizes[member] = sum(tensor.numel() for tensor in tensors)
    assert 2_000_000 <= sizes["teacher"] <= 5_000_000
    assert sizes["student"] * 6 <= sizes["teacher"]
    assert sum(path.stat().st_size for path in FAMILY.rglob("*") if path.is_file()) <= 20e6


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_weights_score_what_their_table_says(task: str) -> None:
    from scripts.tiny_family.table import score

    table = json.loads((FAMILY / "scores.json").read_text())
    assert table["teacher"][task]["score"] >= 0.95
    assert 0.2 <= table["student"][task]["score"] / table["teacher"][task]["score"] <= 0.6
    # A sample of 100 may miss the full table by three standard errors.
    for member in ("teacher", "student"):
        expected = table[member][task]["score"]
        margin = 3 * max(expected * (1 - expected), 0.01) ** 0.5 / 10
        found = score(FAMILY / member, task, with_rules=member == "teacher", number=100)["score"]
        assert abs(found - expected) <= margin
