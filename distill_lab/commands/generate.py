"""Let a model answer prompts: data -> completions.jsonl.

In: a data set (any adapter, file or hub id) and a model. Out: a JSONL file with one completion per line
(`id, sample, content, thinking, finish_reason, num_tokens`), written as they are done; the prompts stand beside it as
`<out>.prompts.jsonl`. The same command again asks only what is missing.

    distill generate --model tiny:teacher --data tiny:problems --data.split "test[:20]" --out answers.jsonl
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig


class Config(settings.Config):
    """Settings of `distill generate`."""

    model: ModelConfig
    """Which model answers."""
    data: DataConfig
    """What it is asked."""
    out: Path
    """Where the completions go (.jsonl)."""
    sampling: SamplingConfig = SamplingConfig()
    """How it samples."""
    engine: EngineConfig = EngineConfig()
    """What generates."""


def main(config: Config) -> None:
    """Generate, with a progress bar."""
    from distill_lab.data import write_prompts
    from distill_lab.engines import load_engine
    from distill_lab.generate import generate
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    prompts = config.out.with_suffix(".prompts.jsonl")
    terminal.note(f"prompts: {write_prompts(config.data, prompts)}, in {prompts}")
    terminal.stage(f"answers of {config.model.model}")
    counts = generate(
        prompts,
        config.out,
        lambda: load_engine(config.model, config.engine),
        config.sampling,
        on_progress=terminal.generated,
    )
    terminal.note(f"{counts}, in {config.out}")
