"""Verified distillation: a teacher solves each question several times, a student learns from what is correct.

In: questions with gold answers (MATH, GSM8K, MAWPS, any adapter), a teacher, a student. Out: a run directory with every
solution graded (graded.jsonl), the correct ones (correct.parquet, with num_tokens, level and type), train.parquet and
val.parquet, the student, its score and tokens against teacher and base student, summary.json, report.html.

    distill verified --preset tiny --run runs/verified
    distill verified --preset tiny --run runs/verified --budget 0.5 --budget-by question    shorter, from the same answers
    distill verified --teacher Qwen/Qwen2.5-Math-7B-Instruct --sampling.num-samples 8 --keep shortest --iterations 3
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import QWEN3_AT_ONCE, DataConfig, EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data import splits
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.evaluation.pass_at_k import best_of_k
from distill_lab.evaluation.token_stats import read_stats, render_models, stats_json, with_tokens
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.grading.graders import grading
from distill_lab.pipeline import Pipeline, trained, untrained
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.progress import ProgressReporter
from distill_lab.run import Run
from distill_lab.training_data.reasoning import add_instruction, final_answer_grader
from distill_lab.training_data.selection import BudgetBy, Keep, select, shuffle_answers, take_side, write_correct
from distill_lab.types import Counts


class Config(settings.RecipeConfig):
    """Settings of a verified distillation."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-Math-7B-Instruct", quantization="auto")
    """The model to learn from."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct")
    """The model to train; before training it is the base student."""
    data: DataConfig = DataConfig(path="DigitalLearningGmbH/MATH-lighteval", split="train[:2000]")
    """Questions with gold answers; a tenth of them is for validation."""
    instruction: str = r"Please reason step by step, and put your final answer within \boxed{}."
    """Stands after every question, for teacher and student alike, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=2048, temperature=0.7, num_samples=4)
    """How the teacher solves the questions; num_samples: how often each."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric where all gold answers are numbers, else math."""
    min_score: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The grade from which a solution counts as correct; below 1 for graders with shades, such as judge."""
    keep: Keep = "all"
    """Of a question's different correct solutions: all, the shortest, or the first so many."""
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Leave out correct solutions with more tokens than this quantile of them; 0.5: the median, 1: none."""
    budget_by: BudgetBy = "all"
    """The quantile is that of all correct solutions, or of those of the same level, type or question; only with question
    does every question keep a solution."""
    shuffle_answers: bool = False
    """A control: solutions stand under wrong questions, and the student should not gain from them."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Rounds; from the second on the student of the round before is the teacher, as long as its score rises."""
    test: DataConfig = DataConfig(path="DigitalLearningGmbH/MATH-lighteval", split="test[:500]")
    """Questions the scores are taken on; without a path, num_test rows of the data are held out."""
    num_test: Annotated[int, Field(ge=0)] = 100
    """Held-out rows where no test data is given (at most a tenth of the rows); 0: no scores."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=2048)
    """How the models answer test and validation, greedy unless said otherwise."""
    engine: EngineConfig = EngineConfig()
    """What generates."""
    train: TrainConfig = TrainConfig(num_epochs=3, learning_rate=1e-5, max_length=4096, validation_fraction=0)
    """How the student is trained."""
    measure: bool = True
    """Time teacher and student on the test questions."""
    out: str = ""
    """Where a copy of the student goes; empty: none but that in the run directory."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:problems", split="distill[:6000]"),
        instruction="",
        sampling=SamplingConfig(max_new_tokens=160, temperature=1.0, num_samples=2, thinking=False),
        test=DataConfig(path="tiny:problems", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=160, thinking=False),
        train=TrainConfig(
            num_epochs=6, learning_rate=4e-3, tokens_per_batch=2048, max_length=512, weight_decay=0.01,
            validation_fraction=0, save_steps=0.2,
        ),
    ),
    "qwen2.5": Config(),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-1.7B"),
        sampling=QWEN3_AT_ONCE.model_copy(update={"num_samples": 4}),
        test_sampling=QWEN3_AT_ONCE,
    ),
}  # fmt: skip


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> dict[str, Any]:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Beside what every summary has: per model `median_tokens`; `token_ratio` and `size_ratio`; `tokens`, the statistics of
    the correct solutions; `best_of_k` of the teacher's samples; `iterations`, a row per round; `student`, its directory.
    Raises NoData where there is no question or no correct solution, ModelError for a student that does not exist.
    """
    with Run.open(directory, recipe="verified", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        place = str(Path(config.out).absolute()) if config.out else ""
        check_before(config, run=run, out={"copy": place} if place else {}, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.prompts("data", config.data)
        if not run.counts("data").kept:
            raise NoData("No data for verified distillation")
        fitted, train = pipeline.fitted(
            config.student, config.train, teacher=config.teacher, new_tokens=config.sampling.max_new_tokens
        )
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = asked(pipeline, "questions", pipeline.training_prompts(data, test), config.instruction)
        test = asked(pipeline, "test questions", test, config.instruction)
        validation = run.stage(
            "validation questions",
            "validation.jsonl",
            inputs={"prompts": prompts},
            work=lambda path: splits.sample(prompts, path, num_rows=run.counts("questions").kept),
        )
        grader = choose_grader(prompts, test) if config.grader == "auto" else config.grader
        done = rounds(
            pipeline, config.model_copy(update={"student": fitted, "train": train}), prompts, validation, grader
        )
        student = max(done, key=lambda each: each["validation_score"] or 0.0)["student"]
        models = {"teacher": config.teacher, "base": untrained(config.student, fitted, train), "student": student}
        if config.out:
            source = Path(student.model)
            run.stage("copy", place, inputs={"student": source}, work=lambda path: copy(source, path))
        first = run.path("graded.jsonl")
        more = {
            "best_of_k": best_of_k(first, threshold=config.min_score).to_json(),
            "tokens": stats_json(read_stats(run.path("correct.parquet"))),
            "iterations": [each | {"student": each["student"].model} for each in done],
            "student": student.model,
        }
        summary = pipeline.prove(
            models,
            test,
            config.test_sampling,
            grader=grader,
            measure_speed=config.measure,
            extend=lambda summary: with_tokens(summary, run.path("eval")) | more,
        )
        for text in render_models(summary).splitlines():
            run.watch.note(text)
        return summary


def asked(pipeline: Pipeline, name: str, prompts: Path, instruction: str) -> Path:
    """The prompts with the instruction after each question."""
    return pipeline.run.stage(
        name,
        f"{name.replace(' ', '_')}.jsonl",
        inputs={"prompts": prompts, "instruction": instruction},
        work=lambda path: add_instruction(prompts, path, instruction),
    )


def choose_grader(*files: Path) -> str:
    """The deterministic grader that reads every gold answer. Raises UserError where there are none to verify against."""
    found = {final_answer_grader(prompts) for prompts in files}
    answered = all(prompt.answer for file in files for prompt in read_prompts(file, references=True))
    if "overlap" in found or not answered:
        raise UserError(
            "there are questions without a gold answer, so nothing to verify solutions against; give data that has them, "
            "or choose a --grader that needs none, as judge:MODEL"
        )
    return "math" if "math" in found else "numeric"


def rounds(pipeline: Pipeline, config: Config, prompts: Path, validation: Path, grader: str) -> list[dict[str, Any]]:
    """Round after round, each trained from the base student on what the student before it solved (as in ReST-EM, Singh
    et al. 2023); ends with the first whose score on the validation questions does not rise."""
    if config.iterations > 1 and not pipeline.run.counts("validation questions").kept:
        raise NoData("iterations are compared on a tenth of the questions; give at least 10, or --iterations 1")
    teacher, done = config.teacher, []
    for number in range(1, config.iterations + 1):
        try:
            done.append(one_round(pipeline, config, number, teacher, prompts, validation, grader))
        except NoData as error:
            if number == 1:
                raise
            pipeline.watch.note(f"iteration {number}: {error}; iterations end")
            break
        if number > 1 and done[-1]["validation_score"] <= done[-2]["validation_score"]:
            pipeline.watch.note(f"iteration {number} scores no higher on the validation questions: iterations end")
            break
        teacher = done[-1]["student"]
    return done


def one_round(
    pipeline: Pipeline, config: Config, number: int, teacher: ModelConfig, prompts: Path, validation: Path, grader: str
) -> dict[str, Any]:
    """Solve, grade, select, train and, of several iterations, score: a row of the summary's `iterations`."""
    run, folder, nth = pipeline.run, "", ""
    if number > 1:
        folder, nth = f"iteration-{number}/", f" {number}"

    def stage(name: str, output: str, work: Callable[[Path], Counts], **inputs: Any) -> Path:
        return run.stage(f"{name}{nth}", f"{folder}{output}", inputs=inputs, work=work)

    solutions = pipeline.answers(
        f"teacher solutions{nth}", teacher, prompts, config.sampling, output=f"{folder}completions.jsonl"
    )
    graded = pipeline.graded(f"grades{nth}", prompts, solutions, grader, output=f"{folder}graded.jsonl")
    run.watch.note(f"the teacher: {best_of_k(graded, threshold=config.min_score)}")
    correct = stage(
        "correct solutions",
        "correct.parquet",
        lambda path: write_correct(prompts, graded, path, min_score=config.min_score),
        prompts=prompts,
        graded=graded,
        min_score=config.min_score,
    )
    counts = run.counts(f"correct solutions{nth}")
    if not counts.kept:
        raise NoData(
            f"no correct solution to learn from ({counts}); see {graded}: give questions the teacher can solve, a "
            "stronger teacher, more samples (--sampling.num-samples) or another --grader"
        )
    pipeline.warn(dropped_warning(counts))
    run.watch.note(f"correct: {read_stats(correct)['all']['']}")
    choice: dict[str, Any] = {"keep": config.keep, "budget": config.budget, "budget_by": config.budget_by}
    selected = stage(
        "selection", "selected.parquet", lambda path: select(correct, path, **choice), correct=correct, **choice
    )
    sides: dict[str, Any] = {"selected": selected, "validation": validation}
    rows = stage(
        "training set", "train.parquet", lambda path: take_side(selected, validation, path, side="training"), **sides
    )
    stage(
        "validation set", "val.parquet", lambda path: take_side(selected, validation, path, side="validation"), **sides
    )
    if not run.counts(f"training set{nth}").kept:
        raise NoData(
            "every correct solution is of a validation question, none is left to train on; give more questions"
        )
    if config.shuffle_answers:
        right = rows
        rows = stage("shuffled answers", "shuffled.parquet", lambda path: shuffle_answers(right, path), rows=right)
    out = pipeline.student(
        config.student,
        rows,
        config.train,
        name=f"student{nth}",
        output=f"{folder}student",
        thinking=config.sampling.thinking,
    )
    student = trained(out, config.student, config.train)
    score = None
    if config.iterations > 1:
        name = f"{folder}validation"
        answers = pipeline.answers(
            f"validation answers{nth}", student, validation, config.test_sampling, output=f"{name}.completions.jsonl"
        )
        with grading(grader, pipeline.engine) as loaded:
            score = evaluate(validation, answers, run.path(f"{name}.graded.jsonl"), loaded)
        run.watch.note(f"iteration {number}: {score.score:.1%} of {score.n} validation questions")
    return {
        "iteration": number,
        "teacher": teacher.model,
        "student": student,
        "num_rows": run.counts(f"training set{nth}").kept,
        "mean_row_tokens": read_stats(rows)["all"][""].mean,
        "validation_score": score.score if score else None,
        "validation_tokens": score.mean_tokens if score else None,
    }


def copy(source: Path, path: Path) -> None:
    """Copy the student's directory to where it was asked for."""
    shutil.copytree(source, path, dirs_exist_ok=True)
