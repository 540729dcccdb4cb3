"""Chain of thought with LoRA: a teacher writes worked solutions, adapters on a 4-bit student learn them.

In: questions (raw_questions.jsonl, GSM8K, any adapter), a teacher, a student. Out: a run directory with
raw_questions.jsonl, cot_dataset.jsonl, test_questions.jsonl, the adapters in student/, predictions.jsonl (and those of the
base student), accuracy before and after where the test has gold answers, summary.json, report.html.

    distill cot --preset tiny --run runs/cot
    distill cot --data data/raw_questions.jsonl --test data/test_questions.jsonl --teacher Qwen/Qwen2.5-14B-Instruct
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.activity import ProgressReporter
from distill_lab.config import DataConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.grading.choose_grader import final_answer_grader
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.run import Run
from distill_lab.training_data.cot_files import take_gold, write_cot_dataset, write_predictions, write_questions

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
    instruction: str = f'{settings.STEP_BY_STEP} End with a line "Final Answer:" and the answer.'
    """Follows every question, for teacher and student, in training and in the test."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512)
    test: DataConfig = DataConfig(path="openai/gsm8k:main", split="test[:200]")
    """Questions for the predictions, with gold answers or without; without a path, num_test rows of the data."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512)
    train: TrainConfig = TrainConfig(
        num_epochs=3, learning_rate=2e-4, tokens_per_batch=4096, gradient_accumulation_steps=4, lora=LORA
    )
    """How the adapters are trained; train.lora.r 0: all weights, on a student with --student.quantization none."""


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
        sampling=settings.QWEN3_AT_ONCE,
        test_sampling=settings.QWEN3_AT_ONCE,
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Test questions without gold answers get predictions and no score. Raises NoData without questions, UserError for a
    student that does not exist and for 4-bit weights without adapters.
    """
    thinking = config.test_sampling.thinking
    with Run.open(directory, recipe="cot", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        check_before(config, run=run, out={"student": student_path(config.out)}, example="Qwen/Qwen2.5-1.5B-Instruct")
        data = pipeline.data(config.data, "CoT distillation")
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        questions = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        pipeline.step("raw questions", "raw_questions.jsonl", write_questions, questions, answers=False)
        pipeline.step("test questions", "test_questions.jsonl", write_questions, test, answers=True)
        asked = pipeline.with_instruction("asked", test, config.instruction)
        gold = pipeline.step("test with gold answers", "asked_gold.jsonl", take_gold, asked, gold=True)
        bare = pipeline.step("test without gold answers", "asked_bare.jsonl", take_gold, asked, gold=False)
        check_test(gold.path, config)
        prompts = pipeline.with_instruction("questions", questions, config.instruction)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher solutions", config.teacher, prompts, config.sampling)
            pipeline.step("cot dataset", "cot_dataset.jsonl", write_cot_dataset, questions, completions)
        rows = pipeline.training_set(prompts, completions)
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        models = models_to_compare(config, out, student, train)
        grader = final_answer_grader(gold.path) if config.grader == "auto" else config.grader
        setups = ask_alike(models, config.test_sampling)
        summary = evaluate_models(pipeline, setups, gold.path, grader=grader, measure_speed=config.measure)
        for name, file in (("base", "predictions_base.jsonl"), ("student", "predictions.jsonl")):
            answers = [run.path(f"eval/{name}.jsonl")] if gold.kept else []
            if bare.kept:
                title, output = f"answers of {name} without gold", f"eval/{name}.bare.completions.jsonl"
                answers.append(pipeline.answers(title, models[name], bare.path, config.test_sampling, output=output))
            pipeline.step(f"predictions of {name}", file, write_predictions, test, *answers)
        return summary
