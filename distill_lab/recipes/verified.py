"""Verified distillation: a teacher solves each question several times, a student learns from what is correct.

In: questions with gold answers (MATH, GSM8K, MAWPS, any adapter), a teacher, a student. Out: a run directory with every
solution graded (graded.jsonl), the correct ones (correct.parquet, with num_tokens, level and type), train.parquet and
val.parquet, the student, its score and tokens against teacher and base student, summary.json, report.html.

    distill verified --preset tiny --run runs/verified
    distill verified --preset tiny --run runs/verified --budget 0.5 --budget-by question    shorter, from the same answers
    distill verified --preset tiny --choose-prompts pass_rate     only questions that the student solves sometimes
    distill verified --teacher Qwen/Qwen2.5-Math-7B-Instruct --sampling.num-samples 8 --keep shortest --iterations 3
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from distill_lab.activity import ProgressReporter
from distill_lab.config import QWEN3_AT_ONCE, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.token_stats import render_models, with_tokens
from distill_lab.grading.choose_grader import verifying_grader
from distill_lab.pipeline.choosing import chosen_prompts
from distill_lab.pipeline.fitting import base_model_config
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.recipes._rounds import RoundsConfig, best_round
from distill_lab.run import Run


class Config(RoundsConfig):
    """Settings of a verified distillation."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-Math-7B-Instruct", quantization="auto")
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct")
    data: DataConfig = DataConfig(path="DigitalLearningGmbH/MATH-lighteval", split="train[:2000]")
    """Questions with gold answers; a tenth of them is for validation."""
    instruction: str = r"Please reason step by step, and put your final answer within \boxed{}."
    """Follows every question, for teacher and student, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=2048, temperature=0.7, num_samples=4)
    """How the teacher solves the questions; num_samples: how often each."""
    test: DataConfig = DataConfig(path="DigitalLearningGmbH/MATH-lighteval", split="test[:500]")
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=2048)
    """How the models answer test and validation, greedy unless said otherwise."""
    train: TrainConfig = TrainConfig(num_epochs=3, learning_rate=1e-5, max_length=4096, validation_fraction=0)
    out: str = ""
    """Where a copy of the student goes; empty: only in the run directory."""


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


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Beside what every summary has: per model `median_tokens`; `token_ratio` and `size_ratio`; `tokens`, the statistics of
    the correct solutions; `best_of_k` of the teacher's samples; `iterations`, a row per round; `student`, its directory.
    Raises NoData where there is no question or no correct solution, ModelError for a student that does not exist.
    """
    with Run.open(directory, recipe="verified", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        place = str(Path(config.out).absolute()) if config.out else ""
        check_before(config, run=run, out={"copy": place} if place else {}, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.data(config.data, "verified distillation")
        fitted, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = pipeline.with_instruction(
            "questions", pipeline.training_prompts(data, test, num_words=config.overlap_words), config.instruction
        )
        test = pipeline.with_instruction("test questions", test, config.instruction)
        grader = verifying_grader(prompts, test) if config.grader == "auto" else config.grader
        student = base_model_config(config.student, fitted, train)
        choice = config.pass_rate(threshold=config.min_score)
        prompts = chosen_prompts(pipeline, student, prompts, config.sampling, grader, choice, seed=train.seed)
        best, found = best_round(pipeline, config, fitted, train, prompts, grader)
        if place:
            copy_student(run, Path(best.model), place)
        setups = ask_alike({"teacher": config.teacher, "base": student, "student": best}, config.test_sampling)
        summary = evaluate_models(
            pipeline, setups, test, grader=grader, measure_speed=config.measure,
            extend=lambda summary, *_: replace(with_tokens(summary, run.path("eval")), **found),
        )  # fmt: skip
        pipeline.tell(render_models(summary))
        return summary


def copy_student(run: Run, student: Path, place: str) -> None:
    """Copy the student's directory to where the user wants it."""

    def work(path: Path) -> None:
        shutil.copytree(student, path, dirs_exist_ok=True)

    run.stage("copy", place, inputs={"student": student}, work=work)
