"""Grade completions: a grader gives each one a score.

In: prompts.jsonl with gold answers, and completions for them. Out: `<out>`, a JSONL file with each completion plus
`"grade": {"score", "answer", "status"}`; prints how many could be graded. The replies of a judge are in `<out>` with the
suffix .judge.jsonl. Run the same command again to resume; replies that are there are not paid for again. Other completions
or another grader need another --out, or --overwrite. --save-correct FILE.parquet also writes the correct completions with
their prompts, which `distill train --rows` and pandas read.

    distill grade --prompts answers.prompts.jsonl --completions answers.jsonl --grader numeric --out graded.jsonl
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import EngineConfig


class Config(settings.Config):
    """Settings of `distill grade`."""

    prompts: Path
    """The prompts that the completions answer (.jsonl)."""
    completions: Path
    """A model's completions (.jsonl)."""
    out: Path
    """Output file for graded completions (.jsonl)."""
    grader: str = "exact"
    """A file name in distill_lab/grading/graders: exact, numeric, math, label, overlap; judge:MODEL asks a model."""
    engine: EngineConfig = EngineConfig()
    """Which engine runs the judge."""
    save_correct: Path | None = None
    """Also write the correct completions, with prompt, num_tokens, level and type, to this file (.parquet)."""
    overwrite: bool = False
    """Replace this command's earlier output for other completions or another grader. Never touches other files."""


def main(config: Config) -> None:
    """Grade, and print the counts by status and the accuracy."""
    from distill_lab.errors import UserError
    from distill_lab.files.claims import claim
    from distill_lab.files.outputs import writing
    from distill_lab.grading.grade import grade
    from distill_lab.grading.graders import grader_inputs, grading, replies_path
    from distill_lab.planning.preflight import check_grader, check_server_settings, check_writable, judges
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.selection import write_correct

    if config.save_correct is not None and config.save_correct.suffix != ".parquet":
        raise UserError(f"{config.save_correct}: --save-correct writes Parquet; use a name that ends in .parquet")
    for path in (config.prompts, config.completions):
        if not path.is_file():
            raise UserError(f"{path}: no such file; `distill generate` writes prompts and completions")
    check_grader(config.grader, config.engine)
    check_server_settings(judges(config.grader), config.engine)
    if config.engine.batch:
        raise UserError("--engine.batch: a judge is not asked in batches; remove it")
    for path in filter(None, (config.out, config.save_correct)):
        check_writable(path)
    replies = [replies_path(config.out)] if judges(config.grader) else []
    grader_is = grader_inputs(config.grader, config.engine)
    holding = claim(
        config.out,
        "grade",
        inputs={"prompts": config.prompts, "completions": config.completions, "grader": grader_is},
        files=[config.out, *replies, *([config.save_correct] if config.save_correct else [])],
        appended=replies,
        reads=[config.prompts, config.completions],
        overwrite=config.overwrite,
    )
    with holding:
        terminal = Terminal()
        terminal.stage(f"grades of {config.completions}, by {config.grader}")
        with grading(config.grader, config.engine) as grader:
            tally = grade(
                config.prompts,
                config.completions,
                config.out,
                grader,
                on_note=terminal.note,
                on_progress=terminal.progress,
            )
        terminal.print(f"{tally}; mean score {tally.score:.3f}")
        terminal.note(f"all graded completions are in {config.out}")
        if config.save_correct is not None:
            with writing(config.save_correct):
                counts = write_correct(config.prompts, config.out, config.save_correct)
            accuracy = f", {counts.kept / counts.rows_in:.2%}" if counts.rows_in else ""
            terminal.print(f"correct: {counts}{accuracy}, in {config.save_correct}")
