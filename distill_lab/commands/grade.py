"""Grade completions: each one gets a score from a grader.

In: prompts.jsonl with gold answers, and completions of them. Out: `<out>`, a JSONL file with the completions and
`"grade": {"score", "answer", "status"}` each; how many could be graded on the screen. Stopped, the same command goes on.
Other completions or another grader need another --out, or --overwrite.

    distill grade --prompts answers.prompts.jsonl --completions answers.jsonl --grader numeric --out graded.jsonl
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import EngineConfig


class Config(settings.Config):
    """Settings of `distill grade`."""

    prompts: Path
    """The prompts that were answered (.jsonl)."""
    completions: Path
    """What a model answered (.jsonl)."""
    out: Path
    """Where the graded completions go (.jsonl)."""
    grader: str = "exact"
    """A file name in distill_lab/grading/graders: exact, numeric, math, label, overlap; judge:MODEL asks a model."""
    engine: EngineConfig = EngineConfig()
    """What runs the judge."""
    overwrite: bool = False
    """Replace what this command wrote of other completions or with another grader. Other files are never touched."""


def main(config: Config) -> None:
    """Grade, and print the counts by status."""
    from distill_lab.errors import UserError
    from distill_lab.files.claims import claim
    from distill_lab.grading.grade import grade
    from distill_lab.grading.graders import grader_inputs, load_grader
    from distill_lab.planning.preflight import check_grader, check_writable
    from distill_lab.terminal import Terminal

    for path in (config.prompts, config.completions):
        if not path.is_file():
            raise UserError(f"{path}: no such file; `distill generate` writes prompts and completions")
    check_grader(config.grader, config.engine)
    check_writable(config.out)
    grader_is = grader_inputs(config.grader, config.engine)
    holding = claim(
        config.out,
        "grade",
        inputs={"prompts": config.prompts, "completions": config.completions, "grader": grader_is},
        files=[config.out],
        reads=[config.prompts, config.completions],
        overwrite=config.overwrite,
    )
    with holding:
        terminal = Terminal()
        grader = load_grader(config.grader, config.engine)
        terminal.stage(f"grades of {config.completions}, by {config.grader}")
        tally = grade(config.prompts, config.completions, config.out, grader, on_progress=terminal.progress)
        terminal.print(f"{tally}; mean score {tally.score:.3f}")
        terminal.note(f"every completion with its grade is in {config.out}")
