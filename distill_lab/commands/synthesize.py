"""Make data from data with a model: new or better instructions, reasoning, and ratings.

expand: a few rows as examples -> new instructions of the same kind. refine: instructions -> clear and complete ones.
extract: texts -> instruction and answer pairs. cot: questions -> reasoning and solutions. shorten, lengthen: reasoning ->
shorter or more detailed reasoning with the same result. rate: reasoning or answers -> the same rows with ratings. balance:
rows -> rows of each type of task by its share.

In: a data set (any adapter; for extract also texts: a .txt file, or a column text or data) and a model on any engine. Out: a
file of rows that every recipe takes as --data; requests, answers and counts are in OUT.run. Run the same command again to
resume. What cannot be read is asked again, then left out and counted by reason. Copies and near duplicates among new
instructions are left out, and with --test all rows that overlap with the test.

    distill synthesize expand --model Qwen/Qwen2.5-7B-Instruct --data seeds.jsonl --num-rows 500 --out instructions.jsonl
    distill synthesize cot --model openai:qwen3-32b --data instructions.jsonl --test test.jsonl --out cot.jsonl
    distill synthesize rate --model openai:qwen3-32b --data cot.jsonl --min-rating logical_correctness=1 --out rated.jsonl
    distill synthesize refine --model openai:qwen3-32b --data seeds.jsonl --out refined.jsonl --dry-run
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from distill_lab.pipeline.synthesis.settings import SynthesisConfig

if TYPE_CHECKING:
    from distill_lab.pipeline.synthesis.synthesize import Made
    from distill_lab.terminal import Terminal

ALIASES = {
    "--teacher-model": ("--model.model",),
    "--input-file": ("--data.path",),
    "--output-file": ("--out",),
    "--num-samples": ("--sampling.num-samples",),
    "--temperature": ("--sampling.temperature",),
}


class Config(SynthesisConfig):
    """Settings of `distill synthesize`."""

    job: Annotated[str, tyro.conf.Positional]
    """A file name in distill_lab/pipeline/synthesis/jobs: expand, refine, extract, cot, shorten, lengthen, rate, balance."""
    out: Path
    """Output file: .jsonl for one row per line, .json for an array."""
    run: Path | None = None
    """Run directory for everything else; default: OUT.run."""
    dry_run: bool = False
    """Show the first request, say how many rows would be asked about, and stop."""
    overwrite: bool = False
    """Replace this command's earlier output for another model, data or settings. Never touches other files."""


def main(config: Config) -> None:
    """Make the rows, with progress, and print how many there are."""
    from distill_lab.pipeline.synthesis.synthesize import preview, synthesize
    from distill_lab.terminal import Terminal

    settings = SynthesisConfig(**{name: getattr(config, name) for name in SynthesisConfig.model_fields})
    terminal = Terminal()
    if config.dry_run:
        counts, request = preview(config.job, settings, watch=terminal)
        terminal.finished("")
        terminal.print(f"\nThe first request:\n\n{request}\n")
        terminal.print(f"rows to ask about: {counts}; nothing was asked")
        return
    made = synthesize(
        config.job, settings, config.out, directory=config.run, overwrite=config.overwrite, watch=terminal
    )
    show(made, terminal)


def show(made: Made, terminal: Terminal) -> None:
    """Print the ratings, the counts and where the rows are."""
    terminal.finished("")
    for line in histogram_lines(made.ratings):
        terminal.print(line)
    terminal.print(f"{made.counts}; in {made.path}")


def histogram_lines(ratings: Mapping[str, Mapping[int, int]]) -> list[str]:
    """How many rows have each rating, and the mean, in lines of at most 80 columns up to a million rows."""
    width = max(map(len, ratings), default=0) + 2
    lines: list[str] = []
    for name, numbers in ratings.items():
        total = sum(numbers.values())
        if len(numbers) == 2:
            lines.append(f"{name:<{width}}{numbers[1]:,} of {total:,} yes")
            continue
        mean = sum(value * number for value, number in numbers.items()) / total if total else 0.0
        lines.append(f"{name:<{width}}mean {mean:.1f} of {max(numbers)}")
        most = max(numbers.values(), default=0)
        for value, number in numbers.items():
            bar = "#" * -(-40 * number // most) if most else ""
            lines.append(f"{value:>{width}}  {number:>7,} {bar}".rstrip())
    return lines
