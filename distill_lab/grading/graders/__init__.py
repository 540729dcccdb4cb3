"""Graders by name: a file in this folder with `grade(prompt, completion) -> Grade` defines a grader named after the file.

    grader = load_grader("numeric")
    grader(prompt, completion).score
    grader.grade_all([(prompt, completion), ...])

Rules for every such grader: the score is in [0, 1]; a completion that did not finish (`finish_reason` other than `stop`)
scores 0, whatever it says; a prompt without a gold answer raises an error that names it, and a gold answer that the grader
cannot read raises BadGoldError. What is ambiguous is `unparseable`, never correct. A file with
`load(argument, engine) -> Grader` instead is used as NAME:ARGUMENT (judge:MODEL). METRIC is the score's name in results;
SIMILARITY = True means that it measures similarity to a reference, not correctness. Files that start with an underscore are
shared parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.errors import UserError
from distill_lab.types import Completion, Grade, JsonObject, Prompt

Pair = tuple[Prompt, Completion]


class BadGoldError(UserError):
    """A gold answer that a grader cannot read. The grade stage leaves such a prompt out of the mean."""


class Grader(Protocol):
    """Grades completions."""

    @property
    def name(self) -> str:
        """Identifies the grader and everything its grades depend on; interrupted work resumes only under the same name."""
        ...

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        """Grade one completion of `prompt`. Raises UserError if the prompt lacks what the grader needs."""
        ...

    def grade_all(self, pairs: Sequence[Pair]) -> list[Grade]:
        """Grade many pairs at once, in their order."""
        ...


@runtime_checkable
class AskingGrader(Protocol):
    """A grader that asks a model, and keeps its replies in a file next to the grades."""

    def asking(
        self, replies: Path, pairs: Iterable[Pair], *, paid: Sequence[Path], on_note: Callable[[str], None]
    ) -> AbstractContextManager[None]:
        """While the block grades `pairs`, keep every reply in the file `replies`; what is in it is not paid for again.

        paid: completions files whose costs count toward engine.price.max_cost, too.
        """
        ...


def replies_path(output: Path) -> Path:
    """Where the replies of a grader that asks a model are, for the grades in `output`."""
    return output.with_suffix(".judge.jsonl")


def judge_model(name: str) -> ModelConfig | None:
    """The model that the grader of this name asks; None if it asks none. Raises like `find_grader`."""
    argument = find_grader(name)[1]
    return None if argument is None else ModelConfig(model=argument)


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A grader that grades each completion separately."""

    name: str
    grade: Callable[[Prompt, Completion], Grade]

    def __call__(self, prompt: Prompt, completion: Completion) -> Grade:
        """See `Grader`."""
        return self.grade(prompt, completion)

    def grade_all(self, pairs: Sequence[Pair]) -> list[Grade]:
        """See `Grader`; a gold answer that cannot be read is a grade with that status."""
        return [grade_or_bad_gold(self, prompt, completion) for prompt, completion in pairs]


def grade_or_bad_gold(grader: Grader, prompt: Prompt, completion: Completion) -> Grade:
    """The grade of one completion; status `bad_gold` if the grader cannot read the prompt's gold answer."""
    try:
        return grader(prompt, completion)
    except BadGoldError:
        return Grade(0.0, None, "bad_gold")


@dataclass(frozen=True, slots=True)
class Metric:
    """The name and kind of a grader's scores."""

    grader: str
    """The grader's name."""
    name: str
    """Name of the score for headlines: exact match, ROUGE-L overlap with the reference text."""
    short: str
    """The same for tables and figures."""
    similarity: bool
    """Whether it measures similarity to a reference text, which says nothing about quality."""


def metric_of(name: str, *, reference: str = "gold") -> Metric:
    """The metric of a grader, named as in `load_grader`; loads nothing.

    reference: "teacher" if the teacher's answers replace gold answers. Raises UserError for an unknown name.
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
    """Sorted names of all graders: the file names in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_grader(name: str, engine: EngineConfig | None = None) -> Grader:
    """The grader named NAME or NAME:ARGUMENT; `engine` is for graders that use a model.

    Raises UserError for an unknown name, and if an argument is missing or not allowed.
    """
    module, argument = find_grader(name)
    if argument is None:
        return OneByOne(name, module.grade)
    return module.load(argument, engine or EngineConfig())


@contextmanager
def grading(name: str, engine: EngineConfig | None = None) -> Iterator[Grader]:
    """Like `load_grader`, for a block; frees the grader's model, if any, at its end."""
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
    """The grader's module, and the model after the colon if it takes one. Raises like `load_grader`, but loads nothing."""
    stem, colon, argument = name.partition(":")
    module = _module(stem)
    if "load" not in vars(module):
        if colon:
            raise UserError(f"grader {name!r}: {stem} takes no argument; write {stem}")
        return module, None
    if not argument:
        raise UserError(f"grader {name!r} needs a model; write {stem}:MODEL")
    return module, argument


def _module(stem: str) -> ModuleType:
    if stem not in names():
        raise UserError(f"no grader {stem!r}; choose from {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{stem}")


def grader_inputs(name: str, engine: EngineConfig) -> str | JsonObject:
    """What grades depend on besides the completions: the grader's name, and a judge's model. Raises like `find_grader`."""
    model = judge_model(name)
    if model is None:
        return name
    from distill_lab.generation.model_identity import requested_model_inputs

    return {"name": name.partition(":")[0], **requested_model_inputs(model, engine)}


def gold_answer(prompt: Prompt, grader: str) -> str:
    """The prompt's gold answer. Raises UserError naming prompt and grader if it is missing or empty."""
    if prompt.answer is None or not prompt.answer.strip():
        raise UserError(
            f"prompt {prompt.id} has no gold answer, which the {grader} grader needs; use data with answers"
        )
    return prompt.answer
