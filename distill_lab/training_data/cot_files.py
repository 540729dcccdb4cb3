r"""The four files of chain-of-thought distillation, written from the lab's own: JSONL with exactly these fields.

    raw_questions.jsonl    {"question"}                  cot_dataset.jsonl    {"question", "cot"}
    test_questions.jsonl   {"question", "answer"}        predictions.jsonl    {"question", "generated_text", "prediction",
                                                                               "gold_answer"}

`answer` and `gold_answer` are null where there is no gold answer. Read back (the adapter `question`) they are prompts again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_lab.answers import after_thinking, stated_answer
from distill_lab.chat import answer_text
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.training_data.training_set import CUT, EMPTY, ERROR
from distill_lab.types import Counts, Prompt


def final_answer(text: str) -> str:
    """The answer that `text` states (`Final Answer:`, a box, ...), else its last line with something in it, else ""."""
    stated = stated_answer(text)
    if stated is not None:
        return stated
    lines = [line.strip() for line in after_thinking(text).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def write_questions(prompts: Path, path: Path, *, answers: bool) -> Counts:
    """Write the question of every prompt, its last message; with `answers` its gold answer too."""
    rows = (
        {"question": question(prompt)} | ({"answer": prompt.answer} if answers else {})
        for prompt in read_prompts(prompts)
    )
    number = write_jsonl(path, rows)
    return Counts(number, number)


def write_cot_dataset(prompts: Path, completions: Path, path: Path) -> Counts:
    """Write each whole completion with the question of its prompt, thinking in front of it in think tags.

    Left out, by reason: cut at the token limit, failed, empty.
    """
    questions = _questions(prompts)
    dropped: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for row in read_jsonl(completions):
            reason = {"length": CUT, "error": ERROR}.get(row["finish_reason"]) or (
                "" if row["content"].strip() else EMPTY
            )
            if reason:
                dropped[reason] += 1
            else:
                asked, _ = _asked(questions, row, completions)
                yield {"question": asked, "cot": answer_text(row["content"], row["thinking"])}

    kept = write_jsonl(path, rows())
    return Counts(kept + dropped.total(), kept, dict(dropped))


def write_predictions(prompts: Path, *files: Path) -> Counts:
    """Write a model's answers to `prompts` to the last of `files`: the first sample of each prompt, from the others.

    Those are eval files, graded, or completions. `prediction` is the answer that the grader read, or `final_answer` of the
    text; "" where the text was cut, failed or is missing. Raises DataError for an answer to another prompt.
    """
    *answers, path = files
    questions = _questions(prompts)

    def rows() -> Iterator[dict[str, Any]]:
        for file in answers:
            for row in read_jsonl(file):
                if row["sample"]:
                    continue
                asked, gold = _asked(questions, row, file)
                content = row["output"] if "output" in row else row["content"]
                whole = row["finish_reason"] == "stop"
                read = row.get("grade", {}).get("answer")
                yield {
                    "question": asked,
                    "generated_text": answer_text(content, row["thinking"]),
                    "prediction": (read or final_answer(content)) if whole else "",
                    "gold_answer": gold,
                }

    number = write_jsonl(path, rows())
    return Counts(number, number)


def take_gold(prompts: Path, path: Path, *, gold: bool) -> Counts:
    """Write the prompts that have a gold answer, or those that have none, to `path`, rows as they are."""
    num_rows = 0

    def wanted() -> Iterator[Mapping[str, Any]]:
        nonlocal num_rows
        for row in read_jsonl(prompts):
            num_rows += 1
            if bool(row.get("answer")) == gold:
                yield row

    kept = write_jsonl(path, wanted())
    return Counts(num_rows, kept, {"without a gold answer" if gold else "with a gold answer": num_rows - kept})


def question(prompt: Prompt) -> str:
    """What is asked: the last message."""
    return prompt.messages[-1]["content"]


def _questions(prompts: Path) -> dict[str, tuple[str, str | None]]:
    return {prompt.id: (question(prompt), prompt.answer) for prompt in read_prompts(prompts)}


def _asked(
    questions: Mapping[str, tuple[str, str | None]], row: Mapping[str, Any], file: Path
) -> tuple[str, str | None]:
    if row["id"] not in questions:
        raise DataError(str(file), None, f"an answer to {row['id']!r}, which is not a prompt; generate them again")
    return questions[row["id"]]
