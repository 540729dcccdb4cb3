"""Take a student home: as safetensors with its adapters merged, GGUF, for Ollama or MLX, or to the Hugging Face hub.

In: a run directory (what --run named), a model directory or a Hugging Face id. Out: a directory with the files, a model card
README.md and export.json. Every file is loaded again and asked what the student is asked: how many greedy answers are the
same, and its score, are printed and in the card. Run the same command again to resume.

    distill export runs/first --to gguf --types Q8_0 Q4_K_M
    distill export runs/first --to hub --repo me/my-student --dry-run
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import Dtype, Quantization


class Config(settings.Config):
    """Settings of `distill export`."""

    run: Annotated[str, tyro.conf.Positional]
    """A run directory, a model directory, tiny:student, or a Hugging Face id."""
    to: str
    """A file name in distill_lab/export: safetensors, gguf, ollama, mlx, hub."""
    out: Path | None = None
    """Output directory; default: export/TARGET in the run directory, or export/MODEL/TARGET here."""
    types: tuple[str, ...] = ("Q8_0",)
    """gguf and ollama: how weights are stored: F16, Q8_0, Q4_K_M, ...; a file for each."""
    dtype: Dtype = "auto"
    """safetensors and hub: data type of the weights; auto: as they are stored."""
    quantization: Quantization = "none"
    """Of adapters without a run: what they were trained on."""
    check: Annotated[int, Field(ge=0)] = 20
    """Prompts to compare every file with the student on; 0: none."""
    repo: str = ""
    """hub: the repository, as owner/name."""
    private: bool = True
    """hub: nobody else can see the repository."""
    dry_run: bool = False
    """hub: list files and sizes, and send nothing."""
    overwrite: bool = False
    """Replace this command's earlier output for another student, and upload into a repository that exists."""


def main(config: Config) -> None:
    """Export, and print where the files are."""
    from distill_lab.export import Options, load_target
    from distill_lab.export._export import export_student
    from distill_lab.export._source import find_source
    from distill_lab.terminal import Terminal

    load_target(config.to)
    options = Options(
        types=config.types,
        dtype=config.dtype,
        repo=config.repo,
        private=config.private,
        dry_run=config.dry_run,
    )
    terminal = Terminal()
    source = find_source(config.run, quantization=config.quantization)
    out = config.out or source.place / config.to
    terminal.stage(f"exporting {source.name} to {config.to}")
    rows = export_student(
        config.to, source, out, options, num_prompts=config.check, overwrite=config.overwrite, on_note=terminal.note
    )
    terminal.finished("")
    for row in rows:
        terminal.print(f"{out / row['file'] if row['file'] != 'model' else out}  {row['bytes'] / 1e6:,.1f} MB")
    terminal.note(f"how to use it, and how it compares with the student: {out / 'README.md'}")
