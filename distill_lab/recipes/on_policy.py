"""On-policy: a student learns from its own answers, every token of which the teacher scores.

In: prompts (any data set; answers are not needed), a teacher and a student with one tokenizer. Out: a run directory as
`distill logits` leaves it; summary.json also has the rounds and what the teacher thinks of the student's own text, before
and after. The student is first trained on the teacher's answers (warm-up), then writes answers itself, round by round, and
learns from the teacher's probabilities of every token in them.

    distill on-policy --preset tiny
    distill on-policy --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --data my_prompts.jsonl
    distill on-policy --preset qwen2.5 --objective jsd --rollout.num-samples 4        for pass@k and best of k
    distill on-policy --student runs/system1/student --warm-up-epochs 0 --data p.jsonl    the student is warmed up already
    distill on-policy --teacher M --student M --teacher-prompt rules.txt --data p.jsonl   learn a prompt by heart

Sources: Agarwal et al. 2023 (GKD), Gu et al. 2023 (MiniLLM), Lu 2025 (On-Policy Distillation).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill_lab.activity import ProgressReporter
from distill_lab.config import QWEN3_AT_ONCE, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import Summary
from distill_lab.pipeline.choosing import chosen_prompts
from distill_lab.pipeline.fitting import models_to_compare, student_path
from distill_lab.pipeline.proof import evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.planning.preflight import check_before, check_sampling, check_test
from distill_lab.recipes._on_policy import (
    RolloutConfig,
    on_policy_student,
    probe_server,
    prompt_grader,
    setups,
    warmed_up,
)
from distill_lab.run import Run
from distill_lab.train.on_policy import check_on_policy


class Config(RolloutConfig):
    """Settings of an on-policy run."""

    teacher: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto")
    """The model to learn from, with the student's tokenizer; openai:NAME on a vLLM server with --objective
    sampled_reverse_kl."""
    student: ModelConfig = ModelConfig(model="Qwen/Qwen2.5-0.5B-Instruct")
    data: DataConfig = DataConfig(path="alibaba-pai/DistilQwen_100k", split="train[:1000]")
    """The prompts; answers in the data are not used."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=1.0, thinking=False)
    """How the teacher samples the answers of the warm-up."""
    test_sampling: SamplingConfig = SamplingConfig(max_new_tokens=512, thinking=False)
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: exact if every test row has a gold answer, else overlap."""
    train: TrainConfig = TrainConfig(max_steps=100)
    """How the student is trained in the rounds, and in the warm-up but for its epochs and learning rate. num_epochs
    needs max_steps -1: passes over the prompts. On validation_fraction of the prompts the student's own text is measured."""


PRESETS = {
    "tiny": Config(
        teacher=ModelConfig(model="tiny:teacher"),
        student=ModelConfig(model="tiny:student"),
        data=DataConfig(path="tiny:instructions", split="distill[:2000]"),
        sampling=SamplingConfig(max_new_tokens=48, temperature=1.0, thinking=False),
        rollout=SamplingConfig(max_new_tokens=48, temperature=1.0, thinking=False),
        test=DataConfig(path="tiny:instructions", split="test[:500]"),
        test_sampling=SamplingConfig(max_new_tokens=48, thinking=False),
        warm_up_epochs=2,
        warm_up_learning_rate=4e-3,
        train=TrainConfig(max_steps=60, learning_rate=1e-3, tokens_per_batch=2048, max_length=256, weight_decay=0.01),
    ),
    "qwen2.5": Config(out="distilled-qwen2.5-0.5b-on-policy"),
    "qwen3": Config(
        teacher=ModelConfig(model="Qwen/Qwen3-8B", quantization="auto"),
        student=ModelConfig(model="Qwen/Qwen3-0.6B"),
        test_sampling=QWEN3_AT_ONCE,
        out="distilled-qwen3-0.6b-on-policy",
    ),
}


def run(config: Config, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
    """Run the recipe in `directory` (resuming what is there) and return the summary, which has `on_policy`.

    Raises NoData for an empty slice, ModelError for a model that does not exist, UserError for models whose tokenizers
    differ and for anything else that the user can fix, all of these before the first answer is paid for.
    """
    with Run.open(directory, recipe="on-policy", config=config.model_dump(), watch=watch) as run:
        pipeline, output = Pipeline(run, engine=config.engine), student_path(config.out)
        config = config.model_copy(update={"train": config.train_settings(config.teacher)})
        settings = config.rollout_settings()
        check_sampling(config.rollout, flag="--rollout")
        check_on_policy(config.train, settings)
        check_before(config, run=run, out={"student": output}, example="Qwen/Qwen2.5-0.5B-Instruct")
        probe_server(pipeline, config)
        config = config.model_copy(update={"train": config.train_settings(pipeline.resolve(config.teacher))})
        data = pipeline.data(config.data, "on-policy distillation")
        student, train = pipeline.fit(config)
        test = pipeline.test_prompts(data, config.test, config.num_test)
        check_test(test, config)
        prompts = pipeline.training_prompts(data, test, num_words=config.overlap_words)
        grader = prompt_grader(config, prompts)
        start = warmed_up(pipeline, config, student, train, prompts)
        choice = config.pass_rate()
        prompts = chosen_prompts(pipeline, start, prompts, config.rollout, grader, choice, seed=train.seed)
        out, found = on_policy_student(pipeline, start, prompts, train, settings, output=output)
        models = models_to_compare(config, out, student, train)
        return evaluate_models(
            pipeline, setups(pipeline, models, config.test_sampling, settings.system), test, grader=config.grader,
            measure_speed=config.measure, extend=lambda summary, *_: replace(summary, on_policy=found),
        )  # fmt: skip
