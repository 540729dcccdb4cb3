"""`distill eval --draft`: a target, one or two drafts and prompts -> acceptance, wall time and vLLM's command line.

The target's answers are those of the request cache where it has them, so an interrupted command goes on.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.errors import UserError

if TYPE_CHECKING:
    from distill_lab.commands.eval import Config
    from distill_lab.config import ModelConfig
    from distill_lab.terminal import Terminal

NUM_TIMED = 16
"""Prompts that wall time is taken on."""


def eval_draft(config: Config) -> None:
    """Measure, print, and write the report. Raises UserError for settings that belong to a score."""
    from distill_lab.config import ModelConfig
    from distill_lab.data.records import write_prompts
    from distill_lab.files.claims import claim
    from distill_lab.files.jsonl import write_json
    from distill_lab.files.outputs import writing
    from distill_lab.generation.engines import resolve_engine_precision
    from distill_lab.generation.model_identity import answer_inputs, model_inputs, shown_name
    from distill_lab.pipeline.draft_proof import BASE, DRAFT, measure_drafts
    from distill_lab.pipeline.draft_stages import ASKED
    from distill_lab.planning.preflight import check_generation, check_loads, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.reasoning import add_instruction

    out = _checked(config)
    check_generation(config.model, config.engine, config.sampling)
    names = {BASE: config.base_draft, DRAFT: config.draft}
    drafts = {
        role: ModelConfig(model=name, dtype=config.model.dtype, quantization="none")
        for role, name in names.items()
        if name
    }
    for draft in drafts.values():
        check_loads(draft)
    check_writable(out)
    terminal = Terminal()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with writing(place):
            terminal.note(f"prompts: {write_prompts(config.data, place / 'questions.jsonl')}")
            add_instruction(place / "questions.jsonl", place / "prompts.jsonl", config.instruction)
        target = resolve_engine_precision(config.model, config.engine)
        resolved = {role: resolve_engine_precision(draft, config.engine) for role, draft in drafts.items()}
        inputs = {
            **answer_inputs(config.model, config.engine, config.sampling),
            **{f"{role} draft": model_inputs(draft) for role, draft in resolved.items()},
            "prompts": place / "prompts.jsonl",
        }
        shown = {"model": shown_name(config.model)} | {f"{role} draft": draft.model for role, draft in drafts.items()}
        claimed = partial(claim, inputs=inputs, files=[out], reads=[Path(config.data.path)], shown=shown)
        with claimed(out, "eval --draft", overwrite=config.overwrite):
            answers = {name: _answered(config, target, place, name, terminal) for name in ASKED}
            terminal.stage("drafts beside the target")
            report = measure_drafts(
                target, resolved, place / "prompts.jsonl", answers, max_new_tokens=config.sampling.max_new_tokens,
                num_timed=NUM_TIMED, thinking=config.sampling.thinking,
            )  # fmt: skip
            with writing(out):
                write_json(out, report.to_json())
    for line in report.lines():
        terminal.print(line)
    terminal.note(f"all figures are in {out}")


def _checked(config: Config) -> Path:
    if config.out is None:
        raise UserError("no output file; give --out draft.json")
    unread = {
        "--base": config.base,
        "--predictions": config.predictions,
        "--grader": "" if config.grader == "auto" else config.grader,
    }
    for flag, value in unread.items():
        if value:
            raise UserError(f"{flag} belongs to a score, and --draft takes none; remove it")
    if config.sampling.temperature or config.sampling.num_samples != 1:
        raise UserError(
            "--draft is judged on greedy answers and on answers at temperature 1; remove --sampling.temperature and "
            "--sampling.num-samples"
        )
    return config.out


def _answered(config: Config, target: ModelConfig, place: Path, name: str, terminal: Terminal) -> Path:
    """The target's answers of one kind."""
    from distill_lab.config import SamplingConfig
    from distill_lab.device import memory_returned
    from distill_lab.generation.engines import load_engine
    from distill_lab.generation.generate import check_answered, generate
    from distill_lab.generation.request_cache import RequestCache
    from distill_lab.pipeline.draft_stages import ASKED

    sampling = SamplingConfig.model_validate(config.sampling.model_dump() | ASKED[name])
    answers = place / f"{name}.completions.jsonl"
    terminal.stage(f"{name} answers of {config.model.model}")
    with memory_returned(), RequestCache(target, config.engine, on_note=terminal.note) as cache:
        engine = partial(load_engine, target, config.engine, on_note=terminal.note)
        counts = generate(
            place / "prompts.jsonl", answers, engine, sampling, cache=cache, on_progress=terminal.generated
        )
    check_answered(counts, answers)
    return answers
