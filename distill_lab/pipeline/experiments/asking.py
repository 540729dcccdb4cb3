"""A variant's models on further prompts: a finished run and prompts -> an answers directory with eval/ and a page.

    folder = ask_variant(arm, prompts, students / arm.key, answers / "30-instructions-ab12cd", ...)
    folder / "eval/student.jsonl"

Teacher, base student and student are loaded and asked as in the run; the instruction that follows each prompt is the arm's.
"""

from __future__ import annotations

from pathlib import Path

from distill_lab.activity import ProgressReporter
from distill_lab.config import ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.pipeline.experiments.arms import Arm
from distill_lab.pipeline.experiments.definition import OPEN, PromptsConfig
from distill_lab.pipeline.fitting import models_to_compare
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.report.run_student import fitted, read_run, student_of
from distill_lab.run import Run

RECIPE = "experiment"
TEACHER = "teacher"
"""Grader: likeness to the teacher's answer."""
LIKENESS = "overlap"
ASKED = "test answers of the student"
"""The stage of a run whose record has the student's sampling."""


def ask_variant(
    arm: Arm,
    prompts: PromptsConfig,
    run_dir: Path,
    directory: Path,
    *,
    judge: str,
    instruction: str,
    watch: ProgressReporter | None,
) -> Path:
    """Answer and grade `prompts` in `directory`, resuming what is there, and return it.

    run_dir: the arm's finished run. judge: grades open answers; empty: they are compared with their reference text.
    Raises UserError if the run has no student.
    """
    assert prompts.data is not None, "the recipe's own test is in its run"
    recorded, _ = read_run(run_dir)
    found = fitted(recorded)
    if not found:
        raise UserError(
            f"{run_dir}: run.json does not say how the student was trained; remove the directory and run again"
        )
    student, train = ModelConfig.model_validate(found["student"]), TrainConfig.model_validate(found["train"])
    models = models_to_compare(arm.config, Path(student_of(run_dir).model), student, train)
    stage = recorded["stages"].get(ASKED, {})
    sampling = SamplingConfig.model_validate(stage["sampling"]) if "sampling" in stage else arm.config.test_sampling
    grader = {OPEN: f"judge:{judge}" if judge else LIKENESS, TEACHER: LIKENESS}.get(prompts.grader, prompts.grader)
    config = arm.config.model_copy(update={"test": prompts.data, "test_sampling": sampling, "grader": grader})
    settings = config.model_dump() | {"instruction": instruction}
    with Run.open(directory, recipe=RECIPE, config=settings, watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        test = pipeline.prompts("test", prompts.data).path
        if instruction:
            test = pipeline.with_instruction("test questions", test, instruction)
        evaluate_models(
            pipeline,
            ask_alike(models, sampling),
            test,
            grader=grader,
            teacher_is_reference=True if prompts.grader == TEACHER else None,
            measure_speed=False,
            several_steps=arm.recipe == "system2",
        )
    return directory
