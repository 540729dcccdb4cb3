"""Draft: a small model learns to guess a big one's next tokens, so that speculative decoding makes the big one faster.

In: prompts such as those that will be served, a target (--teacher) and a draft with the same tokenizer (--student). Out: a
run directory with the draft, draft.json with the share of its tokens that the target accepts, before and after training,
and the wall time of assisted generation; the target's answers themselves stay what they were.

    distill draft --preset tiny
    distill draft --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --data my_prompts.jsonl
    distill eval --model Qwen/Qwen2.5-7B-Instruct --draft runs/draft/student --data my_prompts.jsonl --out draft.json
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.activity import ProgressReporter
from distill_lab.config import Asked, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import NoData, UserError
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.draft_stages import (
    check_draft_objective,
    check_draft_sampling,
    draft_base,
    draft_proof,
    measured,
)
from distill_lab.pipeline.fitting import base_model_config, student_path, trained_model_config
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before
from distill_lab.recipes._white_box import CacheMode, WhiteBoxConfig
from distill_lab.report.publish import published
from distill_lab.run import Run


class Config(WhiteBoxConfig):
    """Settings of a draft run; teacher is the target, student the draft."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """The target: the model to make faster. It must run here, not on a server."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct")
    """The draft, with the target's tokenizer."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=1.0, thinking=False)
    """How the target samples the answers that the draft learns from; as it will be served."""
    objective: str = "forward_kl"
    """forward_kl, or acceptance, which is the rate itself and needs --cache-mode off or top_k."""
    cache_mode: CacheMode = "sampled"
    grader: str = "auto"
    """Only auto: a draft gets no score."""
    num_timed: Annotated[int, Field(ge=0)] = 16
    """Test prompts whose wall time is taken with and without the draft; 0 or --no-measure: none."""

    def proof(self) -> tuple[Asked, ...]:
        """The target answers; the drafts are compared on what it wrote."""
        return draft_proof(self.test_sampling)


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:instructions", split="distill[:4000]"),
        sampling=SamplingConfig(max_new_tokens=48, temperature=1.0, thinking=False),
        test=DataConfig(path="tiny:instructions", split="test[:200]"),
        test_sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        train=TrainConfig(num_epochs=3, learning_rate=4e-3, tokens_per_batch=2048, max_length=256, weight_decay=0.01),
    ),
    "qwen2.5": Config(out="draft-qwen2.5-0.5b"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-0.6B"),
        out="draft-qwen3-0.6b",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary.

    Raises NoData for an empty slice or a test without an answer, ModelError for a model that does not exist, UserError for
    models whose tokenizers differ and for anything else that the user can fix.
    """
    with Run.open(directory, recipe="draft", config=config.model_dump(), watch=watch) as run:
        pipeline, output = Pipeline(run, engine=config.engine), student_path(config.out)
        check_draft_sampling(config.test_sampling, "--test-sampling")
        if config.grader != "auto":
            raise UserError("--grader belongs to a score, and a draft gets none; remove it")
        check_draft_objective(config.objective)
        config = config.model_copy(update={"train": config.train_settings(config.teacher)})
        check_before(config, run=run, out={"student": output}, example="Qwen/Qwen2.5-0.5B-Instruct")
        config = config.model_copy(update={"train": config.train_settings(pipeline.resolve(config.teacher))})
        data = pipeline.data(config.data, "draft distillation")
        config = config.model_copy(update={"student": draft_base(pipeline, config)})
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        if not test.stat().st_size:
            raise NoData("a draft is judged on test prompts, and there are none; give --test, --num-test or more data")
        prompts = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        answers = (
            pipeline.answers("teacher answers", config.teacher, prompts, config.sampling) if config.relabel else None
        )
        rows = pipeline.training_set(prompts, answers)
        if config.cache_mode != "off":
            pipeline.teacher_cache(student, rows, train, student=output, thinking=config.sampling.thinking)
        out = pipeline.student(student, rows, train, output=output, thinking=config.sampling.thinking)
        drafts = {
            "base": base_model_config(config.student, student, train),
            "draft": trained_model_config(out, student, train),
        }
        report = measured(pipeline, config, drafts, test, num_timed=config.num_timed if config.measure else 0)
        summary = dataclasses.replace(
            summarize(run.recipe, report.num_answers, scores={}), result=report.sentence(), draft=report,
            notes=tuple(report.lines()), test_overlap=pipeline.overlap, generated=pipeline.generated(),
        )  # fmt: skip
        return published(run, lambda speeds: summary, None)
