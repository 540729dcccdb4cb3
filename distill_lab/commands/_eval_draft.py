"""`distill eval --draft`: a target, one or two drafts and prompts -> acceptance, wall time and vLLM's command line.

The target's answers are those of the request cache where it has them, so an interrupted command goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig
    from distill_lab.terminal import Terminal

NUM_TIMED = 16
"""Prompts that wall time is taken on."""


def eval_draft(
    model: ModelConfig,
    drafts: Mapping[str, str],
    data: DataConfig,
    out: Path,
    *,
    instruction: str,
    sampling: SamplingConfig,
    engine: EngineConfig,
    overwrite: bool,
) -> None:
    """Measure, print, and write the report to `out`. drafts: the models' names by `draft_proof`'s BASE and DRAFT."""
    from distill_lab.config import ModelConfig
    from distill_lab.data.records import write_prompts
    from distill_lab.files.claims import claim
    from distill_lab.files.jsonl import write_json
    from distill_lab.files.outputs import writing
    from distill_lab.generation.engines import resolve_engine_precision
    from distill_lab.generation.model_identity import answer_inputs, model_inputs, shown_name
    from distill_lab.pipeline.draft_proof import measure_drafts
    from distill_lab.pipeline.draft_stages import ASKED
    from distill_lab.planning.preflight import check_generation, check_loads, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.reasoning import add_instruction

    check_generation(model, engine, sampling)
    loaded = {role: ModelConfig(model=name, dtype=model.dtype, quantization="none") for role, name in drafts.items()}
    for draft in loaded.values():
        check_loads(draft)
    check_writable(out)
    terminal = Terminal()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with writing(place):
            terminal.note(f"prompts: {write_prompts(data, place / 'questions.jsonl')}")
            add_instruction(place / "questions.jsonl", place / "prompts.jsonl", instruction)
        target = resolve_engine_precision(model, engine)
        resolved = {role: resolve_engine_precision(draft, engine) for role, draft in loaded.items()}
        inputs = {
            **answer_inputs(model, engine, sampling),
            **{f"{role} draft": model_inputs(draft) for role, draft in resolved.items()},
            "prompts": place / "prompts.jsonl",
        }
        shown = {"model": shown_name(model)} | {f"{role} draft": draft.model for role, draft in loaded.items()}
        claimed = partial(claim, inputs=inputs, files=[out], reads=[Path(data.path)], shown=shown)
        with claimed(out, "eval --draft", overwrite=overwrite):
            answers = {name: _answered(target, place, name, sampling, engine, terminal) for name in ASKED}
            terminal.stage("drafts beside the target")
            report = measure_drafts(
                target, resolved, place / "prompts.jsonl", answers, max_new_tokens=sampling.max_new_tokens,
                num_timed=NUM_TIMED, thinking=sampling.thinking,
            )  # fmt: skip
            with writing(out):
                write_json(out, report.to_json())
    for line in report.lines():
        terminal.print(line)
    terminal.note(f"all figures are in {out}")


def _answered(
    target: ModelConfig, place: Path, name: str, sampling: SamplingConfig, engine: EngineConfig, terminal: Terminal
) -> Path:
    """The target's answers of one kind."""
    from distill_lab.config import SamplingConfig
    from distill_lab.device import memory_returned
    from distill_lab.generation.engines import load_engine
    from distill_lab.generation.generate import check_answered, generate
    from distill_lab.generation.request_cache import RequestCache
    from distill_lab.pipeline.draft_stages import ASKED

    asked = SamplingConfig.model_validate(sampling.model_dump() | ASKED[name])
    answers = place / f"{name}.completions.jsonl"
    terminal.stage(f"{name} answers of {target.model}")
    with memory_returned(), RequestCache(target, engine, on_note=terminal.note) as cache:
        load = partial(load_engine, target, engine, on_note=terminal.note)
        counts = generate(place / "prompts.jsonl", answers, load, asked, cache=cache, on_progress=terminal.generated)
    check_answered(counts, answers)
    return answers
