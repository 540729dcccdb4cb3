"""Choose the grader for a test set: prompts with their gold answers -> a grader's name."""

from __future__ import annotations

from pathlib import Path

from distill_lab.answers import last_box
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.grading.graders._number import read_number
from distill_lab.grading.graders.numeric import worked_answer


def default_grader(prompts: Path) -> str:
    """`exact` if every prompt has a gold answer, otherwise `overlap` with the completion from the data."""
    return "exact" if all(prompt.answer for prompt in read_prompts(prompts)) else "overlap"


def has_references(*files: Path) -> bool:
    """Whether every prompt has a gold answer, or a completion from the data."""
    return all(prompt.answer for file in files for prompt in read_prompts(file, references=True))


def final_answer_grader(prompts: Path) -> str:
    """The grader for final answers that fits all gold answers, or reference solutions, of `prompts`.

    `numeric` if each is or ends in a number, `math` if each is a gold answer or ends in a box or `####`, otherwise
    `overlap` with the whole reference.
    """
    numbers = True
    for row in read_jsonl(prompts):
        gold = row.get("answer") or ""
        if not gold and row.get("completion"):
            gold = row["completion"][0]["content"]
            if "####" not in gold and not last_box(gold):
                return "overlap"
        if not gold:
            return "overlap"
        numbers = numbers and read_number(worked_answer(gold), strict=True) is not None
    return "numeric" if numbers else "math"


def verifying_grader(*files: Path) -> str:
    """The deterministic grader that can read all gold answers. Raises UserError if questions have no gold answer."""
    found = {final_answer_grader(prompts) for prompts in files}
    if "overlap" in found or not has_references(*files):
        raise UserError(
            "some questions have no gold answer to verify solutions against; use data with gold answers, or a --grader that "
            "needs none, such as judge:MODEL"
        )
    return "math" if "math" in found else "numeric"
