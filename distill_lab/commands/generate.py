"""Generate completions for prompts with a model: data -> completions.jsonl.

In: a data set (any adapter, file or hub id) and a model. Out: a JSONL file with one completion per line
(`id, sample, content, thinking, finish_reason, num_tokens`), written as each finishes, and the prompts next to it as
`<out>.prompts.jsonl`. --cot FILE also writes the full answers as `{"question", "cot"}`, or with --form messages as
`{"messages": [user, assistant]}` without the system prompt (--prompt-file) and the thinking, for prompt distillation. Run
the same command again to generate only missing and failed completions; answers that another run got from the same model
come from the cache (`distill cache`). Another model, other sampling or other prompts need another --out, or --overwrite:
`<out>.key.json` records what the answers were made with.

    distill generate --model tiny:teacher --data tiny:problems --data.split "test[:20]" --out answers.jsonl
    distill generate --teacher_model MODEL --input_file raw_questions.jsonl --output_file cot_dataset.jsonl
    distill generate --model_name MODEL --prompt-file rules.txt --input_file multilingual.txt --output_file data.jsonl
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig

if TYPE_CHECKING:
    from distill_lab.types import Counts

ALIASES = {
    "--teacher-model": ("--model.model",),
    "--input-file": ("--data.path",),
    "--output-file": ("--cot",),
    "--model-name": ("--form", "messages", "--retries", "3", "--model.model"),
    "--temperature": ("--sampling.temperature",),
    "--tensor-parallel-size": ("--engine.tensor-parallel-size",),
    "--max-retries": ("--retries",),
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
    form: Literal["cot", "messages"] = "cot"
    """What --cot writes; messages: {"messages": [user, assistant]}, without the system prompt and the thinking."""
    prompt_file: str = ""
    """A system prompt that the model answers under, a text file; --cot does not write it."""
    labels: str = ""
    """With --form messages: the labels, one of which is the answer, as a,b,c or a file with one per line; empty: those that
    the prompt file lists after "Labels:"."""
    retries: Annotated[int, Field(ge=0)] = 0
    """With --form messages: ask again, each time with another seed, if an answer cannot be read."""
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

    from distill_lab.commands._generate_messages import retry_files, write_messages_form
    from distill_lab.data.records import write_prompts
    from distill_lab.errors import UserError
    from distill_lab.files.claims import claim
    from distill_lab.files.jsonl import copy_file
    from distill_lab.files.outputs import writing
    from distill_lab.generation.engines import chosen_engine, load_engine
    from distill_lab.generation.generate import check_answered, generate
    from distill_lab.generation.model_identity import answer_inputs, shown_name
    from distill_lab.generation.prices import spending
    from distill_lab.generation.request_cache import RequestCache
    from distill_lab.models.generation_config import resolve_sampling
    from distill_lab.models.names import api_engine
    from distill_lab.planning.preflight import check_generation, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.cot_files import write_cot_dataset
    from distill_lab.training_data.prompt_distillation import read_labels, read_system_prompt, write_asked
    from distill_lab.training_data.reasoning import add_instruction

    out = config.out or (config.cot and config.cot.with_suffix(".completions.jsonl"))
    if out is None:
        raise UserError("no output file; give --out answers.jsonl, or --cot cot_dataset.jsonl")
    if config.cot is not None and config.cot.suffix != ".jsonl":
        raise UserError(f"{config.cot}: --cot (--output-file) writes JSONL; use a name that ends in .jsonl")
    is_messages = config.form == "messages"
    if is_messages and config.cot is None:
        raise UserError("--form messages: no file for the rows; give --cot data.jsonl")
    if not is_messages and (config.labels or config.retries):
        raise UserError("--labels and --retries say which answers can be read; they need --form messages")
    if is_messages and config.sampling.num_samples > 1:
        raise UserError("--form messages has one answer per prompt; leave --sampling.num-samples at 1")
    system = read_system_prompt(config.prompt_file) if config.prompt_file else ""
    labels = read_labels(config.labels, system) if is_messages else ()
    check_generation(config.model, config.engine, config.sampling)
    check_writable(out)
    terminal = Terminal()
    if config.engine.tensor_parallel_size > 1 and chosen_engine(config.model, config.engine) == "transformers":
        terminal.note("--tensor-parallel-size is for vllm; transformers takes as many GPUs as the weights need")
    prompts = out.with_suffix(".prompts.jsonl")
    retried = retry_files(out, config.retries)
    more = [place for file in retried for place in (file, file.with_suffix(".prompts.jsonl"))]
    files = [out, prompts, *more, *([config.cot] if config.cot else [])]
    with writing(out):  # before any work
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        questions, instructed, asked = (Path(folder) / f"{name}.jsonl" for name in ("questions", "instructed", "asked"))
        with writing(questions):
            terminal.note(f"prompts: {write_prompts(config.data, questions)}, in {prompts}")
            add_instruction(questions, instructed, config.instruction)
            write_asked(instructed, asked, system=system, labels=labels)
        sampling, note = resolve_sampling(config.model, config.sampling)
        if note:
            terminal.note(note)
        holding = claim(
            out,
            "generate",
            inputs={**answer_inputs(config.model, config.engine, sampling), "prompts": asked},
            files=files,
            appended=[out, *retried],
            reads=[Path(config.data.path), *([Path(config.prompt_file)] if config.prompt_file else [])],
            shown={"model": shown_name(config.model)},
            overwrite=config.overwrite,
        )
        with holding:
            with writing(prompts):
                copy_file(asked, prompts)
            terminal.stage(f"answers of {config.model.model}")
            cached = RequestCache(config.model, config.engine, on_note=terminal.note) if config.cache else nullcontext()
            with cached as cache:
                load = partial(load_engine, config.model, config.engine, on_note=terminal.note)

                def answer(prompts: Path, path: Path, sampling: SamplingConfig) -> Counts:
                    others = [file for file in (out, *retried) if file != path]
                    progress = terminal.generated
                    return generate(prompts, path, load, sampling, cache=cache, paid=others, on_progress=progress)

                counts = answer(prompts, out, sampling)
                terminal.note(f"{counts}, in {out}")
                if is_messages and config.cot is not None:
                    with writing(config.cot):
                        rows = write_messages_form(
                            questions, prompts, out, config.cot, labels=labels, retries=config.retries,
                            sampling=sampling, answer=answer,
                        )  # fmt: skip
                    terminal.note(f"{rows}, in {config.cot}")
            if api_engine(config.model.model):
                paid = [file for file in (out, *retried) if file.exists()]
                terminal.note(f"paid for these answers: {spending(paid, config.engine.price)}")
            if config.cot is not None and not is_messages:
                with writing(config.cot):
                    terminal.note(f"{write_cot_dataset(questions, out, config.cot)}, in {config.cot}")
        check_answered(counts, out)
