"""Score the family: each member on 500 test items of each task, with the prompts of actual use.

    python -m scripts.tiny_family.build --out family --only table

The teacher labels with the rules prompt and thinking; the base student, which was trained on neither, without. Word problems
ask for steps and are graded on their final answer.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from distill_lab.config import STEP_BY_STEP, EngineConfig, ModelConfig, SamplingConfig
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.files.jsonl import write_json, write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.tiny import tasks
from distill_lab.tiny.labels import RULES
from distill_lab.types import Message, Prompt

NUM_ITEMS = 500


def test_prompts(task: str, *, with_rules: bool, number: int) -> list[Prompt]:
    """The first `number` test items of a task as prompts."""
    prompts = []
    for index, item in enumerate(itertools.islice(tasks.items(task, "test"), number)):
        system: list[Message] = [{"role": "system", "content": RULES}] if with_rules and task == "labels" else []
        question = f"{item['question']}\n{STEP_BY_STEP}" if task == "problems" else item["question"]
        messages = [*system, {"role": "user", "content": question}]
        prompts.append(Prompt(f"test-{index}", messages, item["answer"], item["meta"]))
    return prompts


def score(folder: Path, task: str, *, with_rules: bool, number: int = NUM_ITEMS) -> dict[str, Any]:
    """One cell of the table: the score with its interval, and the mean tokens per answer."""
    prompts = test_prompts(task, with_rules=with_rules, number=number)
    thinking = with_rules and task == "labels"
    engine = load_engine(ModelConfig(model=str(folder)), EngineConfig())
    with tempfile.TemporaryDirectory() as scratch:
        questions, answered = Path(scratch) / "prompts.jsonl", Path(scratch) / "completions.jsonl"
        write_jsonl(questions, (prompt.to_json() for prompt in prompts))
        sampling = SamplingConfig(max_new_tokens=192, thinking=thinking)
        write_jsonl(answered, (completion.to_json() for completion in engine.generate(prompts, sampling)))
        result = evaluate(questions, answered, Path(scratch) / "eval.jsonl", "exact")
    return {
        "score": result.score,
        "ci95": list(result.ci95),
        "n": result.n,
        "mean_tokens": round(result.mean_tokens, 1),
    }


def score_table(family: Path) -> dict[str, Any]:
    """Score every member on every task; also write the table to `family/scores.json`."""
    table: dict[str, Any] = {}
    for member in ("teacher", "student"):
        table[member] = {task: score(family / member, task, with_rules=member == "teacher") for task in tasks.TASKS}
    write_json(family / "scores.json", table)
    return table
