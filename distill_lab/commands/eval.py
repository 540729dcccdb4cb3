"""Score a model on prompts with answers: completions are generated, graded and summed up with a 95% interval.

In: a model and data with gold answers (or reference completions). Out: `<out>` with every prompt, output and grade, one
JSON object a line; the score on the screen. `<out>` minus its suffix plus .completions.jsonl holds the raw completions.

    distill eval --model tiny:student --data tiny:instructions --data.split "test[:200]" --out eval/base.jsonl
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig


class Config(settings.Config):
    """Settings of `distill eval`."""

    model: ModelConfig
    """The model to score."""
    data: DataConfig
    """Prompts and gold answers."""
    out: Path
    """Where the graded items go (.jsonl)."""
    grader: str = "auto"
    """A file name in distill_lab/graders; auto: exact where every row has a gold answer, else overlap."""
    sampling: SamplingConfig = SamplingConfig()
    """How the model answers."""
    engine: EngineConfig = EngineConfig()
    """What generates."""


def main(config: Config) -> None:
    """Generate, grade, print the score."""
    from distill_lab.data import write_prompts
    from distill_lab.engines import load_engine
    from distill_lab.evaluate import evaluate
    from distill_lab.generate import generate
    from distill_lab.line import choose_grader
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    prompts, answers = config.out.with_suffix(".prompts.jsonl"), config.out.with_suffix(".completions.jsonl")
    terminal.note(f"prompts: {write_prompts(config.data, prompts)}")
    terminal.stage(f"answers of {config.model.model}")
    generate(
        prompts,
        answers,
        lambda: load_engine(config.model, config.engine),
        config.sampling,
        on_progress=terminal.generated,
    )
    grader = choose_grader(prompts) if config.grader == "auto" else config.grader
    score = evaluate(prompts, answers, config.out, grader)
    low, high = score.ci95
    terminal.print(
        f"{config.model.model}: {score.score:.1%} [{low:.1%}, {high:.1%}] on {score.n} prompts, graded by {grader}; "
        f"{score.mean_tokens:.0f} tokens an answer, {score.truncated} cut, {score.unparseable} unreadable, "
        f"{score.missing} missing"
    )
    terminal.note(f"every item is in {config.out}")
