"""Logits: a student learns the teacher's whole distribution at every token, not only the token that was written.

In: prompts (any data set), a teacher and a student with one tokenizer. Out: a run directory as `distill system1` leaves it;
training_log.jsonl shows the divergence from the teacher (kd) and the cross-entropy (ce) apart.

    distill logits --preset tiny
    distill logits --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --data my_instructions.jsonl
    distill logits --preset qwen2.5 --cache-mode sampled --train.num-epochs 3     the teacher computes each row once
    distill logits --preset tiny --objective jsd --cache-mode off
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from distill_lab import config as settings
from distill_lab.activity import ProgressReporter
from distill_lab.config import AS_GIVEN, QWEN3_AT_ONCE, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_test
from distill_lab.run import Run
from distill_lab.training_data.reasoning import has_thinking

CE_WEIGHT = 0.2
"""Default share of cross-entropy if someone else than the teacher wrote the answers."""


class Config(settings.RecipeConfig):
    """Settings of a logits run."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """The model to learn from. Its tokenizer must be the student's, and it must run here, not on a server."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct")
    data: DataConfig = DataConfig(path="alibaba-pai/DistilQwen_100k", split="train[:1000]")
    """The prompts, and their answers if relabel is off."""
    relabel: bool = True
    """The teacher writes the answers; off: the data set's own are used."""
    objective: str = "forward_kl"
    """How far student and teacher are apart: forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, entropy_aware or
    acceptance."""
    temperature: float = 1.0
    """Both models' logits are divided by it; 1 compares the distributions themselves."""
    ce_weight: float | None = None
    """Share of cross-entropy in the loss; None: 0 if the teacher wrote the answers, else 0.2."""
    cache_mode: Literal["off", "sampled", "top_k", "hidden"] = "off"
    """Capture the teacher's distributions once, on disk, instead of computing them in every step
    (train.teacher-cache.mode). sampled needs a few bytes per token and is for forward_kl."""
    cache_dir: str = ""
    """Where the cache is; empty: in the folder that all runs share (`distill cache`)."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=1.0, thinking=False)
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, thinking=False)
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: exact if every test row has a gold answer, else overlap."""

    def train_settings(self, teacher: ModelConfig) -> TrainConfig:
        """`train` with the recipe's objective and this teacher. Raises ValidationError for impossible ones."""
        weight = self.ce_weight if self.ce_weight is not None else 0.0 if self.relabel else CE_WEIGHT
        own = dict(each.split("=", 1) for each in self.train.objective_settings)
        given = self.train.model_dump(context=AS_GIVEN) | {
            "objective": self.objective,
            "objective_settings": own | {"temperature": self.temperature, "ce_weight": weight},
            "teacher": teacher,
            "teacher_cache": {
                **self.train.teacher_cache.model_dump(), "mode": self.cache_mode, "folder": self.cache_dir
            },
        }  # fmt: skip
        return TrainConfig.model_validate(given)


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

    Raises NoData for an empty slice, ModelError for a model that does not exist, UserError for models whose tokenizers
    differ and for anything else that the user can fix, all of these before the first answer is paid for.
    """
    with Run.open(directory, recipe="logits", config=config.model_dump(), watch=watch) as run:
        pipeline, output = Pipeline(run, engine=config.engine), student_path(config.out)
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
        if config.cache_mode != "off":
            pipeline.teacher_cache(student, rows, train, student=output, thinking=thinking)
        out = pipeline.student(student, rows, train, output=output, thinking=thinking)
        setups = ask_alike(models_to_compare(config, out, student, train), config.test_sampling)
        return evaluate_models(pipeline, setups, test, grader=config.grader, measure_speed=config.measure)
