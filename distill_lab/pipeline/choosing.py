"""Choosing what to train on, as stages: rows by what they can still teach, prompts by how often the student solves them.

rows = chosen_rows(pipeline, student, rows, train, how="gap", share=0.5, output=output, thinking=thinking)
prompts = chosen_prompts(pipeline, student, prompts, sampling, grader, PassRate("pass_rate"), seed=42)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill_lab.config import ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import NoData
from distill_lab.files.jsonl import read_jsonl
from distill_lab.generation.model_identity import model_inputs
from distill_lab.pipeline.stages import Pipeline, teacher_inputs
from distill_lab.training_data.choosing import choose_rows, draw_rows, pass_rates, write_drawn, write_in_band
from distill_lab.types import JsonObject

ChooseRows = Literal["all", "gap", "random"]
ChoosePrompts = Literal["all", "pass_rate", "random"]


@dataclass(frozen=True)
class PassRate:
    """Which prompts stay."""

    how: ChoosePrompts
    low: float = 0.2
    high: float = 0.8
    num_samples: int = 8
    threshold: float = 1.0
    """The grade from which a sample passes."""


def chosen_rows(
    pipeline: Pipeline,
    student: ModelConfig,
    rows: Path,
    train: TrainConfig,
    *,
    how: ChooseRows,
    share: float,
    output: str,
    thinking: bool | None,
) -> Path:
    """The training set, or the `share` of it that is trained on. output: the student's; its teacher cache holds the rows."""
    if how == "all":
        return rows
    run, model = pipeline.run, pipeline.resolve(student)

    def work(path: Path) -> None:
        from distill_lab.train.learnability import write_learnability

        write_learnability(model, rows, run.path(output), train, path, thinking=thinking, measure=how == "gap")

    inputs: JsonObject = {"rows": rows, "max_length": train.max_length, "thinking": thinking, "how": how}
    if how == "gap":
        inputs |= {
            "cache": train.teacher_cache.model_dump(),
            "settings": train.objective_settings,
            **teacher_inputs(train),
        }
    scores = run.stage("learnability", "learnability.jsonl", inputs=inputs | model_inputs(model), work=work).path
    if how == "gap":
        gaps = [row["gap"] for row in read_jsonl(scores) if "gap" in row]
        pipeline.watch.note(f"the rows' gap between student and teacher: {_spread(gaps)} nats per token")
        return pipeline.step("chosen rows", "chosen.jsonl", choose_rows, rows, scores, share=share).path
    return pipeline.step("random rows", "chosen.jsonl", draw_rows, rows, scores, share=share, seed=train.seed).path


def chosen_prompts(
    pipeline: Pipeline,
    student: ModelConfig,
    prompts: Path,
    sampling: SamplingConfig,
    grader: str,
    choice: PassRate,
    *,
    seed: int,
) -> Path:
    """The prompts, or those that are trained on: the ones that the student solves in some of its samples, but not in all.

    sampling: how the student answers; greedy becomes temperature 1. seed: of the random control. Raises NoData if no prompt
    is left.
    """
    if choice.how == "all":
        return prompts
    changes = {"num_samples": choice.num_samples, "temperature": sampling.temperature or 1.0}
    asked = SamplingConfig.model_validate(sampling.model_dump() | changes)
    answers = pipeline.answers("the student's samples", student, prompts, asked, output="pass_rate/completions.jsonl")
    name = "grades of the student's samples"
    graded = pipeline.graded(name, prompts, answers, grader, output="pass_rate/graded.jsonl")
    rates = [rate for rate in pass_rates(graded, threshold=choice.threshold).values() if rate is not None]
    pipeline.watch.note(f"the student's pass rates: {_spread(rates)}")
    band = pipeline.step(
        "prompts in the pass-rate band", "pass_rate/band.jsonl", write_in_band, prompts, graded,
        low=choice.low, high=choice.high, threshold=choice.threshold,
    )  # fmt: skip
    if not band.kept:
        raise NoData(
            f"the student solves no prompt in {choice.low:.0%} to {choice.high:.0%} of its samples ({band.counts}); widen "
            "--min-pass-rate and --max-pass-rate, or give easier or harder prompts"
        )
    if choice.how == "pass_rate":
        return band.path
    return pipeline.step(
        "random prompts", "pass_rate/random.jsonl", write_drawn, prompts, graded, band.path, seed=seed
    ).path


def _spread(values: list[float]) -> str:
    """Least, median and largest."""
    found = sorted(values)
    if not found:
        return "none"
    return f"{found[0]:.3g} to {found[-1]:.3g}, median {found[len(found) // 2]:.3g}"
