"""System 1: a student learns to follow instructions from a teacher's answers.

In: a data set of instructions (any adapter), a teacher, a student. Out: a run directory with the student as a Hugging
Face model directory, scores of teacher, base student and student on held-out prompts, speeds, summary.json, report.html.

    distill system1 --preset tiny --run runs/first
    distill system1 --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --relabel
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.activity import ProgressReporter
from distill_lab.config import QWEN3_AT_ONCE, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.run import Run


class Config(settings.RecipeConfig):
    """Settings of a System 1 run."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct")
    data: DataConfig = DataConfig(path="alibaba-pai/DistilQwen_100k", split="train[:1000]")
    """The instructions, and their answers if relabel is off."""
    relabel: bool = False
    """The teacher writes new answers; off: the data set's own are used."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=0.8, top_p=0.9, thinking=False)
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, thinking=False)
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: exact if every test row has a gold answer, else overlap."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:instructions", split="distill[:16000]"),
        relabel=True,
        sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        test=DataConfig(path="tiny:instructions", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        train=TrainConfig(
            num_epochs=5, learning_rate=4e-3, tokens_per_batch=2048, max_length=256, weight_decay=0.01, save_steps=0.2
        ),
    ),
    "qwen2.5": Config(out="distilled-qwen2.5-0.5b"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-0.6B"),
        relabel=True,
        sampling=QWEN3_AT_ONCE,
        test_sampling=QWEN3_AT_ONCE,
        out="distilled-qwen3-0.6b",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Raises NoData for an empty slice, ModelError for a student that does not exist, both before anything is written to
    the student's directory; UserError and DataError for anything else the user can fix.
    """
    with Run.open(directory, recipe="system1", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        check_before(config, run=run, out={"student": student_path(config.out)}, example="Qwen/Qwen2.5-0.5B-Instruct")
        data = pipeline.data(config.data, "System 1 distillation")
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher answers", config.teacher, prompts, config.sampling)
        rows = pipeline.training_set(prompts, completions)
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=False)
        setups = ask_alike(models_to_compare(config, out, student, train), config.test_sampling)
        return evaluate_models(pipeline, setups, test, grader=config.grader, measure_speed=config.measure)
