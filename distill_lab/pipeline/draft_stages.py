"""What the draft recipe adds to the way of the data: the draft's weights as the target needs them, and its measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from distill_lab.config import Asked, ModelConfig, RecipeConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.draft_figures import DraftReport
from distill_lab.files.jsonl import write_json
from distill_lab.generation.model_identity import model_inputs
from distill_lab.models.loading import without_weights
from distill_lab.pipeline.stages import Pipeline
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.teachers import reads_other_tokens

ASKED: dict[str, dict[str, float]] = {"sampled": {"temperature": 1.0}, "greedy": {"temperature": 0.0}}
"""Sampling of the target's answers that drafts are compared on, by their kind."""


def draft_proof(sampling: SamplingConfig) -> tuple[Asked, ...]:
    """The answers of the target that drafts are compared on. sampling: of the test, without a temperature."""
    return tuple(
        Asked(
            f"{name} test answers of the target", "teacher", SamplingConfig.model_validate(sampling.model_dump() | own)
        )
        for name, own in ASKED.items()
    )


def check_draft_sampling(sampling: SamplingConfig, flag: str) -> None:
    """Raise UserError for settings that a draft is not judged with: its rates are those of the distribution itself."""
    judged = SamplingConfig(max_new_tokens=sampling.max_new_tokens, thinking=sampling.thinking, seed=sampling.seed)
    other = [name for name in SamplingConfig.model_fields if getattr(sampling, name) != getattr(judged, name)]
    if other:
        names = ", ".join(f"{flag}.{name.replace('_', '-')}" for name in other)
        raise UserError(
            "a draft is judged on the target's greedy answers and on answers at temperature 1, one per prompt; remove "
            + names
        )


def check_draft_objective(objective: str) -> None:
    """Raise UserError for an objective between different tokenizers: a target accepts tokens, not text."""
    if reads_other_tokens(objective):
        raise UserError(
            f"--objective {objective}: a draft guesses the target's tokens, so it needs the target's tokenizer; use "
            "forward_kl or acceptance with a draft that has it"
        )


def draft_base(pipeline: Pipeline, config: RecipeConfig) -> ModelConfig:
    """The draft to train: `config.student`, or a copy whose head has as many rows as the target's.

    vLLM and transformers refuse a pair with different numbers, as Qwen2.5's 0.5B and 7B have.
    """
    rows, own = (_head_rows(model) for model in (config.teacher, config.student))
    if rows == own:
        return config.student
    from distill_lab.models.head_rows import write_with_rows

    student = config.student
    pipeline.watch.note(f"the draft's head gets {rows:,} rows as the target's has, instead of {own:,}")
    path = pipeline.run.stage(
        "draft base",
        "draft_base",
        inputs={"rows": rows, **model_inputs(student)},
        work=lambda path: write_with_rows(student, rows, path),
    ).path
    return student.model_copy(update={"model": str(path), "revision": None})


def measured(
    pipeline: Pipeline, config: RecipeConfig, drafts: Mapping[str, ModelConfig], test: Path, *, num_timed: int
) -> DraftReport:
    """The target's answers to the test, greedy and at temperature 1, and what `drafts` are worth on them: draft.json.

    num_timed: see `measure_drafts`. Raises NoData if the target has no answer that could be compared.
    """
    from distill_lab.pipeline.draft_proof import measure_drafts

    sampling, answers = config.test_sampling, dict[str, Path]()
    for name, asked in zip(ASKED, draft_proof(sampling), strict=True):
        output = f"eval/{name}.completions.jsonl"
        answers[name] = pipeline.answers(asked.stage, config.teacher, test, asked.sampling, output=output)
    target = pipeline.resolve(config.teacher)

    def work(path: Path) -> None:
        report = measure_drafts(
            target, drafts, test, answers, max_new_tokens=sampling.max_new_tokens,
            num_timed=num_timed, thinking=sampling.thinking,
        )  # fmt: skip
        write_json(path, report.to_json())

    inputs = {name: model_inputs(model) for name, model in drafts.items()} | {"target": model_inputs(target)}
    path = pipeline.run.stage(
        "draft figures",
        "draft.json",
        inputs=inputs | answers | {"prompts": test, "num_timed": num_timed, "thinking": sampling.thinking},
        work=work,
    ).path
    return TypeAdapter(DraftReport).validate_python(json.loads(path.read_text(encoding="utf-8")))


def _head_rows(model: ModelConfig) -> int:
    """Rows of a model's output head, read from its config."""
    return decoder_and_head(without_weights(model))[1].linear.out_features
