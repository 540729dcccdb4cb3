"""Which grader fits a test: prompts with their gold answers -> a grader's name."""

from __future__ import annotations

from pathlib import Path

from distill_lab.answers import last_box
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.grading.graders._number import read_number
from distill_lab.grading.graders.numeric import worked_answer


def default_grader(prompts: Path) -> str:
    """`exact` if every prompt has a gold answer, else `overlap` with the data's own completion."""
    return "exact" if all(row.get("answer") for row in read_jsonl(prompts)) else "overlap"


def has_references(*files: Path) -> bool:
    """Whether every prompt has a gold answer, or a completion that came with the data."""
    return all(prompt.answer for file in files for prompt in read_prompts(file, references=True))


def final_answer_grader(prompts: Path) -> str:
    """The grader for final answers that fits every gold answer, or reference solution, of `prompts`.

    `numeric` where each is or ends in a number, `math` where each is a gold answer or ends in a box or `####`, else
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
    """The deterministic grader that reads every gold answer. Raises UserError where there are none to verify against."""
    found = {final_answer_grader(prompts) for prompts in files}
    if "overlap" in found or not has_references(*files):
        raise UserError(
            "there are questions without a gold answer, so nothing to verify solutions against; give data that has them, "
            "or choose a --grader that needs none, as judge:MODEL"
        )
    return "math" if "math" in found else "numeric"
