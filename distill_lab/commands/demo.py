"""Show the lab at work on this machine: the tiny family, offline, a few minutes on two CPU cores.

In: nothing. Out: runs/demo/system1 with a trained student, scores, speeds and report.html; the result on the screen.
What it shows is the machinery on models of a few million parameters, not Qwen's quality.

    distill demo
"""

from __future__ import annotations

from pathlib import Path

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill demo`."""

    run: Path = Path("runs/demo")
    """Where everything goes; the same command again goes on where it stopped."""


def main(config: Config) -> None:
    """Run the recipes, print what came out and what to type next."""
    from distill_lab.recipes import system1
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    directory = config.run / "system1"
    terminal.heading(
        "System 1: instruction following", "a 10-layer teacher writes the answers, a 2-layer student learns"
    )
    summary = system1.run(system1.PRESETS["tiny"], directory, watch=terminal)
    terminal.summary(summary, directory)
    terminal.examples(directory / "eval", number=4)
    terminal.heading("What to do next")
    terminal.print(f"  open the report      {directory / 'report.html'}")
    terminal.print(
        f"  ask the student      distill compare --teacher tiny:teacher --system1 {directory / 'student'} \\"
    )
    terminal.print('                         --prompts "Sort these words from A to Z: pear, cat, hat"')
    terminal.print("  real Qwen, on a GPU  distill system1 --preset qwen2.5 --relabel")
    terminal.print("  every setting        distill system1 --help")
