"""What System 2 does to reasoning traces: choose them by thresholds, have the teacher summarize them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.config import ModelConfig, RecipeConfig, SamplingConfig
from distill_lab.data.traces import select_traces
from distill_lab.errors import NoData
from distill_lab.pipeline.stages import Pipeline
from distill_lab.training_data.reasoning import summary_prompts, threshold_note, with_summaries


class TraceConfig(RecipeConfig):
    """Which traces are learned from."""

    rv_min: Annotated[float, Field(ge=0, le=9)] = 0.6
    """Minimum reasoning verbosity of a trace: a share of the highest level, 9, or, above 1, a level."""
    cd_min: Annotated[float, Field(ge=0, le=9)] = 0.6
    """Minimum cognitive difficulty of a trace, in the same way."""
    verified_only: bool = True
    """Leave out traces that a judge found wrong."""
    per_question: Annotated[int, Field(ge=0)] = 1
    """Maximum traces per question, the best first (verified, verbosity nearest to difficulty, short); 0: all."""


def filtered_traces(pipeline: Pipeline, data: Path, config: TraceConfig) -> Path:
    """The questions with the traces that pass the thresholds. Raises NoData if none does."""
    limits = {name: getattr(config, name) for name in ("rv_min", "cd_min", "verified_only", "per_question")}
    pipeline.watch.note(threshold_note(config.rv_min, config.cd_min))
    traces = pipeline.run.stage(
        "traces", "traces.jsonl", inputs={"data": data, **limits}, work=lambda path: select_traces(data, path, **limits)
    )
    if not traces.kept:
        raise NoData(f"No data for System 2 distillation after filtering ({traces.counts}); lower the thresholds")
    return traces.path


def summarized_thinking(pipeline: Pipeline, teacher: ModelConfig, rows: Path, sampling: SamplingConfig) -> Path:
    """The training rows with the teacher's summary in place of each thinking."""
    run = pipeline.run
    prompts = run.stage(
        "thinking to summarise", "thinking.jsonl", inputs={"rows": rows}, work=lambda path: summary_prompts(rows, path)
    ).path
    short = sampling.model_copy(update={"thinking": False, "num_samples": 1})
    summaries = pipeline.answers("summaries", teacher, prompts, short, output="summaries.jsonl")
    return run.stage(
        "summarised rows",
        "train_summarised.jsonl",
        inputs={"rows": rows, "summaries": summaries},
        work=lambda path: with_summaries(rows, summaries, path),
    ).path
