"""Graders by name: a file in this folder that has `grade(prompt, completion) -> Grade` is a grader of the file's name.

    grader = load_grader("numeric")
    grader(prompt, completion).score
    grader.grade_all([(prompt, completion), ...])

What every such grader keeps to: the score is in [0, 1]; a completion that did not end by itself (`finish_reason` other
than `stop`) scores 0, whatever it says; a prompt without a gold answer is refused by name, never scored.
A file that has `load(argument, engine) -> Grader` instead is asked for as NAME:ARGUMENT (judge:MODEL). Files that begin
with an underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from distill_lab.config import EngineConfig
from distill_lab.errors import UserError
from distill_lab.types import Completion, Grade, Prompt

Pair = tuple[Prompt, Completion]


class Grader(Protocol):
    """What gives grades."""

    @property
    def name(self) -> str:
        """What it is and all that its grades depend on; work that was interrupted is taken up by the same name only."""
        ...

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        """The verdict on one completion of `prompt`. Raises UserError where the prompt lacks what is needed."""
        ...

    def grade_all(self, pairs: Sequence[Pair]) -> list[Grade]:
        """The verdicts on many at once, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A grader that looks at each completion for itself."""

    name: str
    grade: Callable[[Prompt, Completion], Grade]

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        """As `Grader`."""
        return self.grade(prompt, completion)

    def grade_all(self, pairs: Sequence[Pair]) -> list[Grade]:
        """As `Grader`."""
        return [self.grade(prompt, completion) for prompt, completion in pairs]


def names() -> list[str]:
    """The graders there are, sorted: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_grader(name: str, engine: EngineConfig | None = None) -> Grader:
    """The grader of this name, or NAME:ARGUMENT; `engine` is for those that ask a model.

    Raises UserError with the names there are, and where an argument is missing or has no place.
    """
    stem, colon, argument = name.partition(":")
    if stem not in names():
        raise UserError(f"no grader {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{stem}")
    load = vars(module).get("load")
    if load is None and not colon:
        return OneByOne(name, module.grade)
    if load is None:
        raise UserError(f"grader {name!r}: {stem} takes nothing after its name; write {stem}")
    if not argument:
        raise UserError(f"grader {name!r} needs to know which model; write {stem}:MODEL")
    return load(argument, engine or EngineConfig())


def gold_answer(prompt: Prompt, grader: str) -> str:
    """The prompt's gold answer. Raises UserError naming prompt and grader where it has none (an empty one is none)."""
    if prompt.answer is None or not prompt.answer.strip():
        raise UserError(
            f"prompt {prompt.id} has no gold answer, which the {grader} grader needs; use data with answers"
        )
    return prompt.answer
