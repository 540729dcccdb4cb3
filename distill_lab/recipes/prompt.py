"""Prompt distillation: a teacher has a long prompt and thinks, a student with neither learns to answer as it does.

In: texts (.txt with one per line, any adapter), a file with the system prompt, a teacher, a student. Out: a run directory
with messages.jsonl (`{"messages": [user, assistant]}`, the prompt and the thinking gone), the adapters in student/, for
labels evaluation_results.json (confusion matrix, accuracy per label, every prediction), summary.json and report.html with
what an answer costs in tokens and seconds. Student and teacher may be one model (self-distillation).

    distill prompt --preset tiny --run runs/labels
    distill prompt --preset qwen3 --prompt-file rules.txt --data multilingual.txt --max-retries 3
    distill prompt --prompt-file style.txt --data questions.jsonl --grader judge:openai:MODEL      free text

Sources: Askell et al. 2021 (context distillation), Snell et al. 2022 (learning by distilling context).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab import config as settings
from distill_lab.activity import ProgressReporter
from distill_lab.config import DataConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.method import with_batches
from distill_lab.planning.preflight import check_before
from distill_lab.recipes._prompt_proof import evaluate_prompt
from distill_lab.recipes._teacher_answers import PromptConfig, check_settings, readable_answers, with_gold
from distill_lab.run import Run
from distill_lab.training_data.prompt_distillation import (
    read_labels,
    read_system_prompt,
    tokens_per_batch,
    write_messages,
)

TRAIN = TrainConfig(
    learning_rate=2e-4, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.1, warmup_ratio=0.03, weight_decay=0.0,
    max_length=2048, gradient_accumulation_steps=4, gradient_checkpointing=True, lora=LoraConfig(r=32, alpha=32),
)  # fmt: skip
"""The document's settings; one epoch. Alpha equals the rank: at half of it adapters learn at half their rate."""
TEACHER, STUDENT = "Qwen/Qwen3-4B-Thinking-2507", "Qwen/Qwen3-4B-Instruct-2507"


class Config(PromptConfig):
    """Settings of a prompt distillation."""

    teacher: ModelConfig = ModelConfig(model=TEACHER, quantization="auto")
    """The model that answers under the prompt, and thinks if its chat template lets it."""
    student: ModelConfig = ModelConfig(model=STUDENT, quantization="auto")
    """The model that learns to answer without either; the teacher's own name for self-distillation."""
    data: DataConfig = DataConfig(path="")
    """The texts the teacher answers."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=4096, temperature=0.15)
    """How the teacher answers, for the training set and in the test."""
    num_test: Annotated[int, Field(ge=0)] = 200
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, thinking=False)
    """How base student and student answer the test; they are trained for this."""
    grader: str = "auto"
    """label, exact, judge:MODEL or another file name in distill_lab/grading/graders; auto: label if there are labels, else
    exact if every test row has a gold answer, else overlap. Without gold answers the teacher's are the reference."""
    rows_per_batch: Annotated[int, Field(ge=0)] = 4
    """About how many rows a micro-batch packs: sets train.tokens_per_batch by their mean length; 0 leaves that as it is."""
    train: TrainConfig = TRAIN
    """How the student is trained; train.lora.r 0: all weights."""


PRESETS = {
    "tiny": Config(
        prompt_file="tiny:labels",
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:labels", split="distill[:2000]"),
        sampling=SamplingConfig(max_new_tokens=64, temperature=0.15),
        test=DataConfig(path="tiny:labels", split="test[:300]"),
        test_sampling=SamplingConfig(max_new_tokens=16, thinking=False),
        rows_per_batch=16,
        train=TRAIN.model_copy(
            update={"learning_rate": 1e-2, "num_epochs": 3.0, "gradient_accumulation_steps": 1,
                    "gradient_checkpointing": False, "lora": LoraConfig(r=32, alpha=16)}
        ),
    ),
    "qwen3": Config(sampling=settings.QWEN3_THINKING.model_copy(update={"max_new_tokens": 8192})),
    "qwen2.5": Config(
        teacher=ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto"),
    ),
}  # fmt: skip


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    It also has `reference` ("gold" or "teacher"), `cost` of an answer, `labels`. Raises UserError, NoData.
    """
    system = read_system_prompt(config.prompt_file)
    labels = read_labels(config.labels, system) if config.grader in ("auto", "label") else ()
    check_settings(config)
    with Run.open(directory, recipe="prompt", config=config.model_dump(), watch=watch) as run:
        pipeline = Pipeline(run, engine=config.engine)
        check_before(config, run=run, out={"student": student_path(config.out)}, example=STUDENT)
        run.watch.note(f"labels: {', '.join(labels)}" if labels else "no labels: answers are free text")
        data = pipeline.data(config.data, "prompt distillation")
        data = with_gold(pipeline, "data", data, "" if config.test.path else config.gold)
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        test = with_gold(pipeline, "test", test, config.gold if config.test.path else "")
        prompts = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        answered = readable_answers(pipeline, config, prompts, system, labels)
        pipeline.step("messages", "messages.jsonl", write_messages, answered)
        rows = pipeline.training_set(answered, None)
        thinking = config.test_sampling.thinking
        if config.rows_per_batch:
            tokens = tokens_per_batch(config.student, rows, num_rows=config.rows_per_batch, thinking=thinking)
            train = with_batches(train, tokens, config.train.gradient_accumulation_steps)
        out = pipeline.student(student, rows, train, output=student_path(config.out), thinking=thinking)
        return evaluate_prompt(pipeline, config, models_to_compare(config, out, student, train), test, system, labels)
