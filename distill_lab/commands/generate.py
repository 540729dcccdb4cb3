"""Generate completions for prompts with a model: data -> completions.jsonl.

In: a data set (any adapter, file or hub id) and a model. Out: a JSONL file with one completion per line
(`id, sample, content, thinking, finish_reason, num_tokens`), written as each finishes, and the prompts next to it as
`<out>.prompts.jsonl`. --cot FILE also writes the full answers as `{"question", "cot"}`. Run the same command again to
generate only missing and failed completions; answers that another run got from the same model come from the cache
(`distill cache`). Another model, other sampling or other prompts need another --out, or --overwrite: `<out>.key.json`
records what the answers were made with.

    distill generate --model tiny:teacher --data tiny:problems --data.split "test[:20]" --out answers.jsonl
    distill generate --teacher_model MODEL --input_file raw_questions.jsonl --output_file cot_dataset.jsonl
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig

ALIASES = {
    "--teacher-model": ("--model.model",),
    "--input-file": ("--data.path",),
    "--output-file": ("--cot",),
    "--model-name": ("--model.model",),
    "--temperature": ("--sampling.temperature",),
    "--tensor-parallel-size": ("--engine.tensor-parallel-size",),
    "--max-retries": ("--engine.max-retries",),
}


class Config(settings.Config):
    """Settings of `distill generate`."""

    model: ModelConfig
    """The model that answers."""
    data: DataConfig
    """The prompts."""
    out: Path | None = None
    """Output file for completions (.jsonl); default: next to --cot."""
    cot: Path | None = None
    """Also write the answers as {"question", "cot"} to this file (.jsonl)."""
    instruction: str = ""
    """Text to append to every question; --cot does not write it."""
    sampling: SamplingConfig = SamplingConfig()
    """How to sample the answers."""
    engine: EngineConfig = EngineConfig()
    """Which engine generates."""
    cache: bool = True
    """Reuse cached answers to identical requests, and cache new ones."""
    overwrite: bool = False
    """Replace this command's earlier output for another model, sampling or prompts. Never touches other files."""


def main(config: Config) -> None:
    """Generate, with a progress bar."""
    import tempfile
    from contextlib import nullcontext

    from distill_lab.data.records import write_prompts
    from distill_lab.errors import UserError
    from distill_lab.files.claims import claim
    from distill_lab.files.jsonl import copy_file
    from distill_lab.files.outputs import writing
    from distill_lab.generation.engines import load_engine
    from distill_lab.generation.generate import check_answered, generate
    from distill_lab.generation.model_identity import answer_inputs, shown_name
    from distill_lab.generation.prices import spending
    from distill_lab.generation.request_cache import RequestCache
    from distill_lab.models.generation_config import resolve_sampling
    from distill_lab.models.names import api_engine
    from distill_lab.planning.preflight import check_generation, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.cot_files import write_cot_dataset
    from distill_lab.training_data.reasoning import add_instruction

    out = config.out or (config.cot and config.cot.with_suffix(".completions.jsonl"))
    if out is None:
        raise UserError("no output file; give --out answers.jsonl, or --cot cot_dataset.jsonl")
    if config.cot is not None and config.cot.suffix != ".jsonl":
        raise UserError(f"{config.cot}: --cot (--output-file) writes JSONL; use a name that ends in .jsonl")
    check_generation(config.model, config.engine, config.sampling)
    check_writable(out)
    terminal = Terminal()
    prompts = out.with_suffix(".prompts.jsonl")
    files = [out, prompts, *([config.cot] if config.cot else [])]
    with writing(out):  # before any work
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        questions, asked = Path(folder) / "questions.jsonl", Path(folder) / "asked.jsonl"
        with writing(questions):
            terminal.note(f"prompts: {write_prompts(config.data, questions)}, in {prompts}")
            add_instruction(questions, asked, config.instruction)
        sampling, note = resolve_sampling(config.model, config.sampling)
        if note:
            terminal.note(note)
        holding = claim(
            out,
            "generate",
            inputs={**answer_inputs(config.model, config.engine, sampling), "prompts": asked},
            files=files,
            appended=[out],
            reads=[Path(config.data.path)],
            shown={"model": shown_name(config.model)},
            overwrite=config.overwrite,
        )
        with holding:
            with writing(prompts):
                copy_file(asked, prompts)
            terminal.stage(f"answers of {config.model.model}")
            cached = RequestCache(config.model, config.engine, on_note=terminal.note) if config.cache else nullcontext()
            with cached as cache:
                counts = generate(
                    prompts,
                    out,
                    lambda: load_engine(config.model, config.engine, on_note=terminal.note),
                    sampling,
                    cache=cache,
                    on_progress=terminal.generated,
                )
            terminal.note(f"{counts}, in {out}")
            if api_engine(config.model.model):
                terminal.note(f"paid for these answers: {spending([out], config.engine.price)}")
            if config.cot is not None:
                with writing(config.cot):
                    terminal.note(f"{write_cot_dataset(questions, out, config.cot)}, in {config.cot}")
        check_answered(counts, out)
