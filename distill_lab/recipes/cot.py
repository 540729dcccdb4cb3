"""Chain of thought with LoRA: a teacher writes worked solutions, adapters on a 4-bit student learn them.

In: questions (raw_questions.jsonl, GSM8K, any adapter), a teacher, a student. Out: a run directory with
raw_questions.jsonl, cot_dataset.jsonl, test_questions.jsonl, the adapters in student/, predictions.jsonl (and those of the
base student), accuracy before and after where the test has gold answers, summary.json, report.html.

    distill cot --preset tiny --run runs/cot
    distill cot --data data/raw_questions.jsonl --test data/test_questions.jsonl --teacher Qwen/Qwen2.5-14B-Instruct
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import (
    QWEN3_AT_ONCE,
    STEP_BY_STEP,
    DataConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from distill_lab.errors import NoData
from distill_lab.pipeline import Pipeline, student_path, trained, untrained
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.progress import ProgressReporter
from distill_lab.run import Run
from distill_lab.training_data.cot_files import take_gold, write_cot_dataset, write_predictions, write_questions
from distill_lab.training_data.reasoning import add_instruction, final_answer_grader
from distill_lab.types import Counts

LORA = LoraConfig(r=8, alpha=16, dropout=0.05, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
"""The adapters that the CoT summary asks for. It names all linear layers of Qwen2.5 but gate_proj; `all-linear` has it."""


class Config(settings.RecipeConfig):
    """Settings of a CoT distillation."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-14B-Instruct", quantization="auto")
    """The model that writes the solutions."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-1.5B-Instruct", quantization="4bit")
    """The model that gets adapters; before training it is the base student, in as many bits."""
    data: DataConfig = DataConfig(path="openai/gsm8k:main", split="train[:1000]")
    """The questions."""
    relabel: bool = True
    """The teacher writes the solutions; off: the data's own are used (cot_dataset.jsonl)."""
    instruction: str = f'{STEP_BY_STEP} End with a line "Final Answer:" and the answer.'
    """Stands after every question, for teacher and student alike, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512)
    """How the teacher writes the solutions, greedy unless said otherwise."""
    test: DataConfig = DataConfig(path="openai/gsm8k:main", split="test[:200]")
    """Questions for the predictions, with gold answers or without; without a path, num_test rows of the data."""
    num_test: Annotated[int, Field(ge=0)] = 100
    """Held-out rows where no test data is given (at most a tenth of the rows); 0: no scores."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512)
    """How the models answer the test, greedy unless said otherwise."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: numeric where all gold answers are numbers, else math."""
    engine: EngineConfig = EngineConfig()
    """What generates."""
    train: TrainConfig = TrainConfig(
        num_epochs=3, learning_rate=2e-4, tokens_per_batch=4096, gradient_accumulation_steps=4, lora=LORA
    )
    """How the adapters are trained; train.lora.r 0: all weights, on a student with --student.quantization none."""
    measure: bool = True
    """Time teacher and student on the test questions."""
    out: str = ""
    """Where the adapters go; empty: student/ in the run directory."""


SHORT = SamplingConfig(max_new_tokens=160, thinking=False)
PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student", quantization="4bit"),
        data=DataConfig(path="tiny:problems", split="distill[:3000]"),
        instruction="",
        sampling=SHORT,
        test=DataConfig(path="tiny:problems", split="test[:500]"),
        test_sampling=SHORT,
        train=TrainConfig(
            num_epochs=5, learning_rate=1e-2, tokens_per_batch=2048, max_length=512, save_steps=0.2, lora=LORA
        ),
    ),
    "qwen2.5": Config(),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-14B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-1.7B", quantization="4bit"),
        sampling=QWEN3_AT_ONCE,
        test_sampling=QWEN3_AT_ONCE,
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> dict[str, Any]:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Test questions without gold answers get predictions and no score. Raises NoData without questions, UserError for a
    student that does not exist and for 4-bit weights without adapters.
    """
    thinking = config.test_sampling.thinking
    with Run.open(directory, recipe="cot", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        check_before(config, run=run, out={"student": student_path(config.out)}, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.prompts("data", config.data)
        if not run.counts("data").kept:
            raise NoData("No data for CoT distillation")
        student, train = pipeline.fitted(
            config.student, config.train, teacher=config.teacher, new_tokens=config.sampling.max_new_tokens
        )
        test = pipeline.test_prompts(data, config.test, config.num_test)
        questions = pipeline.training_prompts(data, test)
        step(run, "raw questions", "raw_questions.jsonl", write_questions, questions, answers=False)
        step(run, "test questions", "test_questions.jsonl", write_questions, test, answers=True)
        asked = step(run, "asked", "asked.jsonl", add_instruction, test, instruction=config.instruction)
        gold = step(run, "test with gold answers", "asked_gold.jsonl", take_gold, asked, gold=True)
        bare = step(run, "test without gold answers", "asked_bare.jsonl", take_gold, asked, gold=False)
        check_test(gold, config)
        prompts = step(run, "questions", "questions.jsonl", add_instruction, questions, instruction=config.instruction)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher solutions", config.teacher, prompts, config.sampling)
            step(run, "cot dataset", "cot_dataset.jsonl", write_cot_dataset, questions, completions)
        rows = pipeline.training_set(prompts, completions)
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        models = {
            "teacher": config.teacher,
            "base": untrained(config.student, student, train),
            "student": trained(out, student, train),
        }
        grader = final_answer_grader(gold) if config.grader == "auto" else config.grader
        summary = pipeline.prove(models, gold, config.test_sampling, grader=grader, measure_speed=config.measure)
        for name, file in (("base", "predictions_base.jsonl"), ("student", "predictions.jsonl")):
            answers = [run.path(f"eval/{name}.jsonl")] if run.counts("test with gold answers").kept else []
            if run.counts("test without gold answers").kept:
                output = f"eval/{name}.bare.completions.jsonl"
                title = f"answers of {name} without gold"
                answers.append(pipeline.answers(title, models[name], bare, config.test_sampling, output=output))
            step(run, f"predictions of {name}", file, write_predictions, test, *answers)
        return summary


def step(run: Run, name: str, output: str, work: Callable[..., Counts], *files: Path, **settings: Any) -> Path:
    """A stage that reads files and writes one: `work(*files, output, **settings)`, once."""
    inputs = {**{str(number): file for number, file in enumerate(files)}, **settings}
    return run.stage(name, output, inputs=inputs, work=lambda path: work(*files, path, **settings))
