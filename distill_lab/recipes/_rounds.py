"""The rounds of verified distillation: solve, grade, keep what is correct, train; the student may be the next teacher.

In: questions with gold answers, settings. Out: the best round's student, and what the summary says of all rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.data import splits
from distill_lab.errors import NoData
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.evaluation.pass_at_k import best_of_k
from distill_lab.evaluation.summary_parts import RoundSummary
from distill_lab.evaluation.token_stats import read_stats
from distill_lab.files.jsonl import read_jsonl
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.grading.graders import grading
from distill_lab.pipeline.fitting import trained_model_config
from distill_lab.pipeline.stages import Pipeline
from distill_lab.recipes._choosing import PromptChoiceConfig
from distill_lab.run import Stage
from distill_lab.training_data.selection import BudgetBy, Keep, select, shuffle_answers, take_side, write_correct
from distill_lab.types import Counts


class RoundsConfig(PromptChoiceConfig):
    """Which solutions are learned from, and how often."""

    min_score: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The grade from which a solution counts as correct; below 1 for graders that give partial credit, such as judge."""
    keep: Keep = "all"
    """Of a question's different correct solutions: all, the shortest, or the first N."""
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Leave out correct solutions with more tokens than this quantile of them; 0.5: the median, 1: none."""
    budget_by: BudgetBy = "all"
    """The quantile is that of all correct solutions, or of those of the same level, type or question; only with question
    does every question keep a solution."""
    shuffle_answers: bool = False
    """Control: pair each question with another question's solution; the student should not improve."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Rounds; from the second on, the previous round's student is the teacher, as long as its score rises."""


@dataclass(frozen=True, slots=True)
class _Round:
    """What every round works with, and its own number."""

    pipeline: Pipeline
    config: RoundsConfig
    student: ModelConfig
    """As it is trained on this machine, and so is `train`."""
    train: TrainConfig
    prompts: Path
    validation: Path
    grader: str
    number: int
    teacher: ModelConfig

    @property
    def folder(self) -> str:
        """Where the round's files are in the run directory; the first round's are at its top."""
        return f"iteration-{self.number}/" if self.number > 1 else ""

    @property
    def suffix(self) -> str:
        """What is appended to the names of the round's stages."""
        return f" {self.number}" if self.number > 1 else ""

    def stage(self, name: str, output: str, work: Callable[[Path], Counts], **inputs: object) -> Stage:
        """A stage of this round."""
        return self.pipeline.run.stage(f"{name}{self.suffix}", f"{self.folder}{output}", inputs=inputs, work=work)


def best_round(
    pipeline: Pipeline, config: RoundsConfig, student: ModelConfig, train: TrainConfig, prompts: Path, grader: str
) -> tuple[ModelConfig, dict[str, object]]:
    """Run the rounds; returns the student with the best validation score and the summary's fields on all rounds.

    Each is trained from the base student on what the student before it solved (as in ReST-EM, Singh et al. 2023); the
    first whose score on the validation questions does not rise is the last. Raises NoData without correct solutions.
    """
    run = pipeline.run
    num_questions = sum(1 for _ in read_jsonl(prompts))
    validation = run.stage(
        "validation questions",
        "validation.jsonl",
        inputs={"prompts": prompts},
        work=lambda path: splits.sample_test(prompts, path, num_rows=num_questions),
    )
    if config.iterations > 1 and not validation.kept:
        raise NoData("iterations are compared on a tenth of the questions; give at least 10, or --iterations 1")
    done: list[RoundSummary] = []
    students: list[ModelConfig] = []
    for number in range(1, config.iterations + 1):
        teacher = students[-1] if students else config.teacher
        one = _Round(pipeline, config, student, train, prompts, validation.path, grader, number, teacher)
        try:
            student_config, row = _run_round(one)
        except NoData as error:
            if number == 1:
                raise
            pipeline.watch.note(f"iteration {number}: {error}; iterations end")
            break
        done.append(row)
        students.append(student_config)
        if number > 1 and _score(done[-1]) <= _score(done[-2]):
            pipeline.watch.note(f"iteration {number} scores no higher on the validation questions: iterations end")
            break
    best = students[max(range(len(done)), key=lambda number: _score(done[number]))]
    return best, {
        "best_of_k": best_of_k(run.path("graded.jsonl"), threshold=config.min_score),
        "tokens": read_stats(run.path("correct.parquet")),
        "iterations": tuple(done),
        "student": best.model,
    }


def _score(row: RoundSummary) -> float:
    """Of a round whose student may not have been scored."""
    return row.validation_score or 0.0


def _run_round(one: _Round) -> tuple[ModelConfig, RoundSummary]:
    """Solve, grade, select, train and, if there are several rounds, score: the student and the round's figures."""
    pipeline, config, prompts = one.pipeline, one.config, one.prompts
    output = f"{one.folder}completions.jsonl"
    solutions = pipeline.answers(f"teacher solutions{one.suffix}", one.teacher, prompts, config.sampling, output=output)
    output = f"{one.folder}graded.jsonl"
    graded = pipeline.graded(f"grades{one.suffix}", prompts, solutions, one.grader, output=output)
    pipeline.watch.note(f"the teacher: {best_of_k(graded, threshold=config.min_score)}")
    min_score = config.min_score
    work = partial(write_correct, prompts, graded, min_score=min_score)
    correct = one.stage(
        "correct solutions", "correct.parquet", work, prompts=prompts, graded=graded, min_score=min_score
    )
    assert correct.counts is not None
    if not correct.kept:
        raise NoData(
            f"no correct solution to learn from ({correct.counts}); see {graded}: give questions the teacher can solve, a "
            "stronger teacher, more samples (--sampling.num-samples) or another --grader"
        )
    pipeline.warn(dropped_warning(correct.counts))
    pipeline.watch.note(f"correct: {read_stats(correct.path)['all']['']}")
    rows = _training_rows(one, correct.path)
    out = pipeline.student(
        one.student, rows.path, one.train,
        name=f"student{one.suffix}", output=f"{one.folder}student", thinking=config.sampling.thinking,
    )  # fmt: skip
    student = trained_model_config(out, one.student, one.train)
    score = None
    if config.iterations > 1:
        title, output = f"validation answers{one.suffix}", f"{one.folder}validation.completions.jsonl"
        answers = pipeline.answers(title, student, one.validation, config.test_sampling, output=output)
        with grading(one.grader, pipeline.engine) as loaded:
            results = pipeline.run.path(f"{one.folder}validation.graded.jsonl")
            paid = pipeline.paid_beside(f"grades of {title}", one.grader, results)
            score = evaluate(one.validation, answers, results, loaded, paid=paid, on_note=pipeline.watch.note)
        pipeline.watch.note(f"iteration {one.number}: {score.score:.1%} of {score.n} validation questions")
    return student, RoundSummary(
        iteration=one.number,
        teacher=one.teacher.model,
        student=student.model,
        num_rows=rows.kept,
        mean_row_tokens=read_stats(rows.path)["all"][""].mean,
        validation_score=score.score if score else None,
        validation_tokens=score.mean_tokens if score else None,
    )


def _training_rows(one: _Round, correct: Path) -> Stage:
    """The chosen correct solutions of the training questions. Raises NoData if all are of validation questions."""
    config, validation = one.config, one.validation
    choice = {"keep": config.keep, "budget": config.budget, "budget_by": config.budget_by}
    work = partial(select, correct, keep=config.keep, budget=config.budget, budget_by=config.budget_by)
    selected = one.stage("selection", "selected.parquet", work, correct=correct, **choice).path
    sides = {"selected": selected, "validation": validation}
    work = partial(take_side, selected, validation, side="training")
    rows = one.stage("training set", "train.parquet", work, **sides)
    work = partial(take_side, selected, validation, side="validation")
    one.stage("validation set", "val.parquet", work, **sides)
    if not rows.kept:
        raise NoData(
            "every correct solution is of a validation question, none is left to train on; give more questions"
        )
    if not config.shuffle_answers:
        return rows
    work = partial(shuffle_answers, rows.path)
    return one.stage("shuffled answers", "shuffled.parquet", work, rows=rows.path)
