"""Give several models the same prompts and print their answers side by side.

In: prompts, and the paths or names of a teacher and of students. Out: text with a block per prompt and a labeled answer per
model; for a path without a model it prints `Model not found at <path>` with the reason and skips that model. Exit code 2
if no model answered.

    distill compare --teacher tiny:teacher --system1 runs/demo/system1/student --prompts "Make this upper case: pear, cat"
"""

from __future__ import annotations

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill compare`."""

    prompts: tuple[str, ...]
    """Prompts for all models."""
    teacher: str | None = None
    """The teacher; its answer is shortened."""
    base: str | None = None
    """The student before training."""
    system1: str | None = None
    """The System 1 student."""
    system2: str | None = None
    """The System 2 student."""
    max_new_tokens: int = 128
    """Maximum tokens per answer."""


def main(config: Config) -> int:
    """Generate the answers and print them; 2 if no model was found."""
    from distill_lab.errors import UserError
    from distill_lab.evaluation.compare import compare_models
    from distill_lab.report.side_by_side import LINE, TEACHER_CHARS, render_comparison
    from distill_lab.terminal import Terminal

    labels = {"Teacher": config.teacher, "Base": config.base, "System 1": config.system1, "System 2": config.system2}
    models = {label: path for label, path in labels.items() if path is not None}
    if not models:
        raise UserError("nothing to compare: give at least one of --teacher, --base, --system1, --system2")
    comparisons = compare_models(
        config.prompts, models, step_by_step={"System 2"}, max_new_tokens=config.max_new_tokens
    )
    terminal = Terminal()
    width = min(LINE, terminal.console.width)
    terminal.print(render_comparison(comparisons, max_chars={"Teacher": TEACHER_CHARS}, width=width))
    found = {label for comparison in comparisons for label in comparison.answers}
    for label, reason in comparisons[0].reasons.items() if comparisons else ():
        terminal.note(f"{models[label]}: {reason}")
    return 0 if found or not comparisons else 2
