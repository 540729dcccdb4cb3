"""Several steps before the final answer: the rule on answers of every kind, and the share of an eval file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.answers import MAX_CHARS
from distill_lab.evaluation.statistics import score_interval
from distill_lab.evaluation.steps import Steps, count_steps, num_steps
from distill_lab.files.jsonl import write_jsonl
from distill_lab.tiny import tasks
from tests.helpers import eval_row


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 + 5 = 17.\n17 * 2 = 34.\nFinal Answer: 34", 2),
        ("12 + 5 = 17. 17 * 2 = 34. The answer is 34.", 2),
        ("12 + 5 = 17.\nFinal Answer: 17", 1),
        ("Final Answer: 17", 0),
        ("17", 0),
        ("", 0),
        # The last sentence is the answer where none states one.
        ("He has five pears. He buys two more. So he has 7.", 2),
        ("He has five pears, so 7.", 0),
        # An explanation that comes after the answer is none before it.
        ("The answer is 7. I added the pears first. Then I looked again.", 0),
        # Headings, single words and marks of lists are no steps; what was said before is none either.
        ("Step 1:\nStep 2.\n### Solution\nOkay.\nFinal Answer: 7", 0),
        ("1. We add the pears.\n2. We add the pears.\n- We add the pears.\nFinal Answer: 7", 1),
        ("**Step 1:** 3x = 9\n**Step 2:** x = 3\n\\[ \\boxed{3} \\]", 2),
        # A point in a number ends no sentence.
        ("3.5 + 2.5 = 6.0\nFinal Answer: 6.0", 1),
        ("速度是路程除以时间。120除以2等于60。答案是60。", 2),
        # Thinking counts, and needs an answer after it.
        ("<think>\nTom has five pears.\nHe buys two more.\n</think>\n\nFinal Answer: 7", 2),
        ("<think>\nTom has five pears.\nHe buys two more.\nSo seven.\n</think>\n\n", 0),
    ],
)
def test_steps_before_the_final_answer(text: str, number: int) -> None:
    assert num_steps(text) == number


def test_the_worked_solutions_of_the_tiny_problems_have_as_many_steps_as_they_say() -> None:
    for _, item in zip(range(400), tasks.items("problems", "test"), strict=False):
        assert num_steps(item["output"]) == item["meta"]["level"], item["output"]
        assert num_steps(f"Final Answer: {item['answer']}", item["thinking"]) == item["meta"]["level"]


def test_real_solutions_and_traces_reason_in_several_steps(shared_data: Path) -> None:
    lines = (shared_data / "math/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    found = [num_steps(json.loads(line)["answer"]) for line in lines]
    assert sum(number >= 2 for number in found) >= 0.99 * len(found)
    for row in json.loads((shared_data / "cot/r1_sample_ollama.json").read_text(encoding="utf-8")):
        assert num_steps(row["message_content"], row["message_thinking"]) >= 2


@pytest.mark.parametrize("letters", ["a", "\n", "= ", "x. ", "*", "1. "])
def test_only_the_end_of_a_long_answer_is_read(letters: str) -> None:
    """What stands before the last MAX_CHARS characters makes no step, however odd or long it is."""
    end = "\n1 + 1 = 2.\n2 + 1 = 3.\nFinal Answer: 3"
    kept = (letters * MAX_CHARS)[: MAX_CHARS - len(end)] + end
    assert len(kept) == MAX_CHARS
    steps = num_steps(kept)
    assert steps >= 2
    assert num_steps("Before this there were 5 + 5 = 10 apples.\n" + letters * 1_000_000 + kept) == steps


def test_the_share_is_of_the_prompts_that_take_several_steps(tmp_path: Path) -> None:
    two, one = "1 + 1 = 2.\n2 + 1 = 3.\nFinal Answer: 3", "1 + 2 = 3.\nFinal Answer: 3"

    def prompt(id: str, completion: str | None) -> dict[str, Any]:
        row = {"id": id, "messages": [{"role": "user", "content": id}]}
        return row if completion is None else row | {"completion": [{"role": "assistant", "content": completion}]}

    def item(id: str, output: str, reason: str = "stop", sample: int = 0) -> dict[str, Any]:
        return eval_row(id, sample=sample, output=output, finish_reason=reason)

    prompts, items = tmp_path / "prompts.jsonl", tmp_path / "items.jsonl"
    write_jsonl(prompts, [prompt("a", two), prompt("b", one), prompt("c", None), prompt("d", two)])
    rows = [item("a", two), item("a", one, sample=1), item("b", one), item("c", two), item("d", two, "length")]
    write_jsonl(items, rows)
    assert count_steps(prompts, {"m": items})["m"] == Steps(1.5 / 3, 3, score_interval([0.5, 1.0, 0.0]))
    write_jsonl(prompts, [prompt("b", one)])
    assert count_steps(prompts, {"m": items})["m"] == Steps(0.0, 0)
