"""Logits: a student learns the teacher's whole distribution at every token, not only the token that was written.

In: prompts (any data set), a teacher and a student. Out: a run directory as `distill system1` leaves it; training_log.jsonl
shows the divergence from the teacher (kd) and the cross-entropy (ce) apart. If the two have different tokenizers, chunks of
text are compared, and agreement.json says on how much of the answers they can be.

    distill logits --preset tiny
    distill logits --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --data my_instructions.jsonl
    distill logits --preset qwen2.5 --cache-mode sampled --train.num-epochs 3     the teacher computes each row once
    distill logits --preset tiny --objective jsd --cache-mode off
    distill logits --preset tiny --choose-rows gap --rows-share 0.5     train on what the student can still learn
    distill logits --teacher google/gemma-3-4b-it --student Qwen/Qwen2.5-0.5B-Instruct     another tokenizer
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.activity import ProgressReporter
from distill_lab.config import QWEN3_AT_ONCE, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.agreement import tokenizer_agreement
from distill_lab.pipeline.choosing import ChooseRows, chosen_rows
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.recipes._white_box import WhiteBoxConfig, fitting_objective
from distill_lab.run import Run
from distill_lab.training_data.reasoning import has_thinking


class Config(WhiteBoxConfig):
    """Settings of a logits run."""

    choose_rows: ChooseRows = "all"
    """gap: only rows that can still teach the student something, by its nats per token less the teacher's (needs a teacher
    cache); random: as many rows, drawn at random, as a control."""
    rows_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the rows that choose_rows keeps."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:instructions", split="distill[:8000]"),
        sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        test=DataConfig(path="tiny:instructions", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        cache_mode="sampled",
        train=TrainConfig(num_epochs=5, learning_rate=4e-3, tokens_per_batch=2048, max_length=256, weight_decay=0.01),
    ),
    "qwen2.5": Config(out="distilled-qwen2.5-0.5b-logits"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-0.6B"),
        sampling=QWEN3_AT_ONCE,
        test_sampling=QWEN3_AT_ONCE,
        out="distilled-qwen3-0.6b-logits",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Raises NoData for an empty slice, ModelError for a model that does not exist, UserError for an objective or a teacher
    cache that the models' tokenizers do not allow and for anything else that the user can fix, all of these before the
    first answer is paid for.
    """
    with Run.open(directory, recipe="logits", config=config.model_dump(), watch=watch) as run:
        pipeline, output = Pipeline(run, engine=config.engine), student_path(config.out)
        config = config.model_copy(update={"objective": fitting_objective(config)})
        if config.choose_rows == "gap" and config.cache_mode == "off":
            raise UserError(
                "--choose-rows gap reads from the teacher's cache how likely it finds each row; use --cache-mode sampled, "
                "top_k or hidden"
            )
        config = config.model_copy(update={"train": config.train_settings(config.teacher)})
        check_before(config, run=run, out={"student": output}, example="Qwen/Qwen2.5-0.5B-Instruct")
        config = config.model_copy(update={"train": config.train_settings(pipeline.resolve(config.teacher))})
        data = pipeline.data(config.data, "logits distillation")
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        completions = None
        if config.relabel:
            completions = pipeline.answers("teacher answers", config.teacher, prompts, config.sampling)
        rows = pipeline.training_set(prompts, completions)
        thinking = None if has_thinking(rows) else False
        agreement = tokenizer_agreement(pipeline, student, rows, train, thinking=thinking)
        cached = config.cache_mode != "off"
        # The gap is read from the cache; rows chosen without it are chosen first, so that the teacher reads no others.
        if cached and config.choose_rows == "gap":
            pipeline.teacher_cache(student, rows, train, student=output, thinking=thinking)
        rows = chosen_rows(
            pipeline, student, rows, train,
            how=config.choose_rows, share=config.rows_share, output=output, thinking=thinking,
        )  # fmt: skip
        if cached and config.choose_rows != "gap":
            pipeline.teacher_cache(student, rows, train, student=output, thinking=thinking)
        out = pipeline.student(student, rows, train, output=output, thinking=thinking)
        setups = ask_alike(models_to_compare(config, out, student, train), config.test_sampling)
        return evaluate_models(
            pipeline, setups, test, grader=config.grader, measure_speed=config.measure,
            extend=lambda summary, *_: replace(summary, agreement=agreement),
        )  # fmt: skip
