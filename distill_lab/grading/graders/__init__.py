"""Graders by name: a file in this folder that has `grade(prompt, completion) -> Grade` is a grader of the file's name.

    grader = load_grader("numeric")
    grader(prompt, completion).score
    grader.grade_all([(prompt, completion), ...])

What every such grader keeps to: the score is in [0, 1]; a completion that did not end by itself (`finish_reason` other
than `stop`) scores 0, whatever it says; a prompt without a gold answer is refused by name, never scored.
A file that has `load(argument, engine) -> Grader` instead is asked for as NAME:ARGUMENT (judge:MODEL). METRIC says what its
score is called in results; SIMILARITY = True, that it measures likeness to a reference and not whether an answer is right.
Files that begin with an underscore are shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from distill_lab.config import EngineConfig, ModelConfig
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


@dataclass(frozen=True, slots=True)
class Metric:
    """What a grader's scores are called, and what they may be used for."""

    grader: str
    """The grader's name."""
    name: str
    """What a score is, as it stands in a headline: exact match, ROUGE-L overlap with the reference text."""
    short: str
    """The same for a table or figure."""
    similarity: bool
    """Likeness to a reference text: nothing follows from it about quality."""


def metric_of(name: str, *, reference: str = "gold") -> Metric:
    """The metric of a grader, given as `load_grader` takes it; nothing is loaded.

    reference: "teacher" where the teacher's answers take the place of gold answers. Raises UserError for an unknown name.
    """
    stem, _, argument = name.partition(":")
    module = vars(_module(stem))
    long = module.get("METRIC", stem)
    short = long.removesuffix(" with the reference text")
    if reference == "teacher":
        long = f"{short} against the teacher's answers"
    if argument:
        long = f"{long} ({argument})"
    return Metric(name, long, short, bool(module.get("SIMILARITY")))


def names() -> list[str]:
    """The graders there are, sorted: the file names of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_grader(name: str, engine: EngineConfig | None = None) -> Grader:
    """The grader of this name, or NAME:ARGUMENT; `engine` is for those that ask a model.

    Raises UserError with the names there are, and where an argument is missing or has no place.
    """
    module, argument = find_grader(name)
    if argument is None:
        return OneByOne(name, module.grade)
    return module.load(argument, engine or EngineConfig())


@contextmanager
def grading(name: str, engine: EngineConfig | None = None) -> Iterator[Grader]:
    """As `load_grader`, for a block after which the grader's model, if it has one, is given back."""
    grader = load_grader(name, engine)
    try:
        yield grader
    finally:
        release = getattr(grader, "release", None)
        if release is not None:
            from distill_lab.device import free_memory

            release()
            free_memory()


def find_grader(name: str) -> tuple[ModuleType, str | None]:
    """The grader's file, and the model after the colon where it takes one. Raises as `load_grader`, loads nothing."""
    stem, colon, argument = name.partition(":")
    module = _module(stem)
    if "load" not in vars(module):
        if colon:
            raise UserError(f"grader {name!r}: {stem} takes nothing after its name; write {stem}")
        return module, None
    if not argument:
        raise UserError(f"grader {name!r} needs to know which model; write {stem}:MODEL")
    return module, argument


def _module(stem: str) -> ModuleType:
    if stem not in names():
        raise UserError(f"no grader {stem!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{stem}")


def grader_inputs(name: str, engine: EngineConfig) -> Any:
    """What grades depend on besides what is graded: the grader's name, and of a judge the model. Raises as `find_grader`."""
    _, argument = find_grader(name)
    if argument is None:
        return name
    from distill_lab.generation.model_identity import asked_model

    return {"name": name.partition(":")[0], **asked_model(ModelConfig(model=argument), engine)}


def gold_answer(prompt: Prompt, grader: str) -> str:
    """The prompt's gold answer. Raises UserError naming prompt and grader where it has none (an empty one is none)."""
    if prompt.answer is None or not prompt.answer.strip():
        raise UserError(
            f"prompt {prompt.id} has no gold answer, which the {grader} grader needs; use data with answers"
        )
    return prompt.answer
