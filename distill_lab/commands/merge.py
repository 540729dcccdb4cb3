"""Merge adapters into their base model: an adapter directory -> a plain model directory that needs no peft.

In: the output of `distill train --train.lora.r 16`. Out: a Hugging Face model directory that computes the same. If the
adapters were trained on 4 or 8 bits, set the same quantization: the merged weights are then the dequantized ones.

    distill merge --adapter my-student --out my-student-merged
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import ModelConfig


class Config(settings.Config):
    """Settings of `distill merge`."""

    adapter: ModelConfig
    """Directory of the adapters, and the quantization they were trained on."""
    out: Path
    """Output directory for the merged model."""
    overwrite: bool = False
    """Replace this command's earlier output for other adapters. Never touches other files."""


def main(config: Config) -> None:
    """Merge, and print where the model is."""
    from distill_lab.files.claims import claim
    from distill_lab.generation.model_identity import model_inputs, shown_name
    from distill_lab.planning.preflight import check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.train.lora import merge_directory

    check_writable(config.out)
    terminal = Terminal()
    holding = claim(
        config.out,
        "merge",
        inputs=model_inputs(config.adapter),
        files=[config.out],
        reads=[Path(config.adapter.model)],
        shown={"model": shown_name(config.adapter)},
        overwrite=config.overwrite,
    )
    with holding as claimed:
        if claimed.done:
            terminal.note(f"{config.out} was already merged from the same adapters; there is nothing to do")
            return
        terminal.stage(f"merging {config.adapter.model}")
        merge_directory(config.adapter, config.out)
        terminal.note(f"the merged model is in {config.out}")
