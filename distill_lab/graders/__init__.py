"""Graders by name: a file in this folder that has `grade(prompt, completion) -> Grade` is a grader of the file's name.

    grade = load_grader("exact")
    grade(prompt, completion).score

What every grader keeps to: the score is in [0, 1]; a completion that did not end by itself (`finish_reason` other than
`stop`) scores 0, whatever it says; a prompt without a gold answer is refused by name, never scored.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from distill_lab.errors import UserError
from distill_lab.types import Completion, Grade, Prompt


class Grader(Protocol):
    """What a grader's file offers."""

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        """The verdict on one completion of `prompt`. Raises UserError where the prompt lacks what is needed."""
        ...


def names() -> list[str]:
    """The graders there are, sorted: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_grader(name: str) -> Grader:
    """The grader of this name. Raises UserError with the names there are."""
    if name not in names():
        raise UserError(f"no grader {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").grade


def gold_answer(prompt: Prompt, grader: str) -> str:
    """The prompt's gold answer. Raises UserError naming prompt and grader where it has none (an empty one is none)."""
    if prompt.answer is None or not prompt.answer.strip():
        raise UserError(
            f"prompt {prompt.id} has no gold answer, which the {grader} grader needs; use data with answers"
        )
    return prompt.answer
