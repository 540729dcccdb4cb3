"""On-policy distillation: what a step costs, writing included, here and in TRL's DistillationTrainer.

Part `on_policy` of `benchmarks/kd.py`. Both train the tiny student on its answers to the same prompts, with the tiny teacher
beside it, reverse KL, as many rollouts to a step and as many new tokens at most. Seconds are CPU seconds of this process.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.data.records import write_prompts
from distill_lab.train.on_policy import train_on_policy
from distill_lab.train.rollouts import RolloutSettings

TEACHER, STUDENT = ModelConfig(model="tiny:teacher"), ModelConfig(model="tiny:student")
ROLLOUTS, NEW_TOKENS, STEPS_PER_ROUND = 64, 48, 4


def on_policy_part(rounds: int) -> dict[str, float]:
    """CPU seconds per step and per generated token, after a first round to warm up; TRL's over ours if it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(DataConfig(path="tiny:problems", split="distill[:1024]"), prompts)
        ours, tokens = _ours(prompts, Path(folder) / "student", rounds)
        print(f"on-policy: {ours:.3f} s a step, {tokens / ours:,.0f} new tokens/s")
        found = {"on_policy_step_s": ours, "on_policy_tokens_per_s": tokens / ours}
        try:
            theirs = _trl(prompts, Path(folder) / "trl", rounds * STEPS_PER_ROUND)
        except ImportError as error:
            print(f"without TRL: {error}")
            return found
        print(f"on-policy, TRL: {theirs:.3f} s a step")
        return found | {"on_policy_vs_trl": theirs / ours}


def _ours(prompts: Path, out: Path, rounds: int) -> tuple[float, float]:
    """Seconds and generated tokens per step."""
    at: list[float] = []

    def on_log(row: dict[str, Any]) -> None:
        if "loss" in row:
            at.append(time.process_time())

    config = TrainConfig(
        dtype="fp32", teacher=TEACHER, objective="reverse_kl", max_steps=(rounds + 1) * STEPS_PER_ROUND, max_length=512,
        learning_rate=1e-3, tokens_per_batch=16_384, logging_steps=1, validation_fraction=0.01, save_steps=1e6,
    )  # fmt: skip
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=1.0, thinking=False)
    settings = RolloutSettings(sampling=sampling, steps_per_round=STEPS_PER_ROUND, rollouts_per_step=ROLLOUTS)
    result = train_on_policy(STUDENT, prompts, out, config, settings, on_log=on_log)
    steps = rounds * STEPS_PER_ROUND
    tokens = sum(each.tokens for each in result.stats.rounds[1:]) / steps
    return (at[-1] - at[STEPS_PER_ROUND - 1]) / steps, tokens


def _trl(prompts: Path, out: Path, steps: int) -> float:
    """TRL's seconds per step. Raises ImportError without it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    from distill_lab.models.loading import load_model

    at: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at.append(time.process_time())

    student, tokenizer = load_model(STUDENT, training=True)
    teacher, _ = load_model(TEACHER)
    arguments = DistillationConfig(
        output_dir=str(out), max_steps=steps + 1, per_device_train_batch_size=ROLLOUTS, learning_rate=1e-3, beta=1.0,
        max_completion_length=NEW_TOKENS, temperature=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    rows = [{"prompt": prompt.messages} for prompt in read_prompts(prompts)]
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return (at[-1] - at[0]) / steps
