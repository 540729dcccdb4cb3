"""System 2: a student learns to reason from reasoning traces, or from a teacher's worked solutions.

In: a data set of questions with traces (OmniThought, `{"question", "cot"}`, any adapter), filtered by verbosity (RV) and
difficulty (CD), of each question the best that a judge found right; or, with --relabel, questions that the teacher
solves. Out: a run directory as System 1's, with the share of answers that reason in several steps.

    distill system2 --preset tiny --run runs/reasons
    distill system2 --student Qwen/Qwen2.5-1.5B-Instruct --rv-min 0.6 --cd-min 0.6 --export data/omnithought_cot.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from distill_lab import config as settings
from distill_lab.activity import ProgressReporter
from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.grading.choose_grader import final_answer_grader
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.recipes._traces import TraceConfig, filtered_traces, summarized_thinking
from distill_lab.run import Run
from distill_lab.training_data.reasoning import has_thinking, reasoning_data
from distill_lab.training_data.training_set import export_rows


class Config(TraceConfig):
    """Settings of a System 2 run."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """Solves the questions if relabel is on, writes the summaries, and is what the student is measured against."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct")
    data: DataConfig = DataConfig(path="alibaba-pai/OmniThought", split="train[:2000]")
    """The questions, and their traces if relabel is off."""
    relabel: bool = False
    """The teacher writes the solutions; off: the data set's own traces are used."""
    instruction: str = settings.STEP_BY_STEP
    """Follows every question, for teacher and student, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096, temperature=0.8, top_p=0.9)
    thinking: Literal["keep", "summarise", "summarize", "drop"] = "keep"
    """keep: the student learns the thinking, in its think block, and the solution; summarize: the teacher rewrites each
    thinking as a few short steps; drop: the solution alone, with whatever steps it has."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096)
    """How the models answer the test, greedy unless said otherwise; thinking: as the student learned it."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric, else math, if the final answers are known, else
    overlap."""
    train: TrainConfig = TrainConfig(learning_rate=1e-5, max_length=4096)
    export: str = ""
    """Also write the training rows as {instruction, input, output} to this .json file, the instruction to think included."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:problems", split="distill[:8000]"),
        relabel=True,
        sampling=SamplingConfig(max_new_tokens=160, thinking=False),
        thinking="drop",
        test=DataConfig(path="tiny:problems", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=160),
        train=TrainConfig(
            num_epochs=6, learning_rate=4e-3, tokens_per_batch=2048, max_length=512, weight_decay=0.01, save_steps=0.2
        ),
    ),
    "qwen2.5": Config(out="distilled-qwen2.5-1.5b-cot"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-1.7B"),
        sampling=settings.QWEN3_THINKING,
        test_sampling=settings.QWEN3_THINKING,
        out="distilled-qwen3-1.7b-cot",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Raises UserError `Unexpected OmniThought schema, please inspect omni[0]` and that row for data without questions and
    reasoning, NoData if no row is left, ModelError for a student that does not exist, all before anything is trained.
    """
    source = reasoning_data(config.data, answered=not config.relabel)
    with Run.open(directory, recipe="system2", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        export = str(Path(config.export).expanduser().absolute()) if config.export else ""
        out = {"student": student_path(config.out)} | ({"export": export} if export else {})
        check_before(config, run=run, out=out, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.data(source, "System 2 distillation")
        student, train = pipeline.fit(config)
        if not config.relabel:
            data = filtered_traces(pipeline, data, config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = pipeline.with_instruction(
            "questions", pipeline.training_prompts(data, test, num_words=config.overlap_words), config.instruction
        )
        test = pipeline.with_instruction("test questions", test, config.instruction)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher solutions", config.teacher, prompts, config.sampling)
        rows = pipeline.training_set(prompts, completions, thinking="drop" if config.thinking == "drop" else "keep")
        if config.thinking in ("summarize", "summarise"):
            rows = summarized_thinking(pipeline, config.teacher, rows, config.sampling)
        if export:
            run.stage("export", export, inputs={"rows": rows}, work=lambda path: export_rows(rows, path))
        thinking = None if has_thinking(rows) else False
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        sampling = config.test_sampling
        if sampling.thinking is None:
            sampling = sampling.model_copy(update={"thinking": thinking})
        grader = final_answer_grader(test) if config.grader == "auto" else config.grader
        setups = ask_alike(models_to_compare(config, out, student, train), sampling)
        return evaluate_models(pipeline, setups, test, grader=grader, measure_speed=config.measure, several_steps=True)
