"""Merge adapters into their student: an adapter directory -> a plain model directory that needs no peft.

In: what `distill train --train.lora.r 16` leaves. Out: a Hugging Face model directory that computes the same. Where the
adapters were trained on 4 or 8 bits, say so: the merged weights are then those the bits stand for.

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
    """Where the merged model goes."""
    overwrite: bool = False
    """Replace what this command wrote of other adapters. Other files are never touched."""


def main(config: Config) -> None:
    """Merge, and say where the model is."""
    from distill_lab.files.claims import claim
    from distill_lab.generation.model_identity import model_inputs, shown_name
    from distill_lab.terminal import Terminal
    from distill_lab.train.lora import merge_directory

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
            terminal.note(f"{config.out} was merged from the same adapters before; there is nothing to do")
            return
        terminal.stage(f"merging {config.adapter.model}")
        merge_directory(config.adapter, config.out)
        terminal.note(f"the merged model is in {config.out}")
