"""Show the lab at work on this machine: the tiny family, offline, a few minutes on two CPU cores.

In: nothing. Out: runs/demo/system1, and with --system2 runs/demo/system2, each with a trained student, scores, speeds and
report.html; the results, and what teacher and students say, on the screen. What it shows is the machinery on models of a
few million parameters, not Qwen's quality.

    distill demo
    distill demo --system2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_lab import config as settings

PROMPTS = (
    "Sort these words from A to Z: pear, cat, hat",
    "Tom has 14 pens. Tom buys 3 boxes with 5 pens each. Tom gives 9 to Mia. How many pens does Tom have now?",
    "A train travels 120 km in 4 hours. How many km does it travel in one hour?",
)


class Config(settings.Config):
    """Settings of `distill demo`."""

    run: Path = Path("runs/demo")
    """Where everything goes; the same command again goes on where it stopped."""
    system2: bool = False
    """Distil reasoning in steps as well, and show both students side by side: about five minutes more."""


def main(config: Config) -> None:
    """Run the recipes, print what came out and what to type next."""
    from distill_lab.compare import compare_models, render_comparison
    from distill_lab.recipes import system1, system2
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    first, second = config.run / "system1", config.run / "system2"
    terminal.heading(
        "System 1: instruction following", "a 10-layer teacher writes the answers, a 2-layer student learns"
    )
    summaries = {"System 1": system1.run(system1.PRESETS["tiny"], first, watch=terminal)}
    terminal.summary(summaries["System 1"], first)
    terminal.examples(first / "eval", number=4)
    if config.system2:
        terminal.heading(
            "System 2: reasoning in steps", "the same teacher solves word problems, another student learns"
        )
        summaries["System 2"] = system2.run(system2.PRESETS["tiny"], second, watch=terminal)
        terminal.summary(summaries["System 2"], second)
        terminal.heading("Both, side by side")
        for line in table(summaries):
            terminal.print(line)
        models = {"Teacher": "tiny:teacher", "System 1": str(first / "student"), "System 2": str(second / "student")}
        terminal.print(render_comparison(compare_models(PROMPTS, models)))
    terminal.heading("What to do next")
    terminal.print(f"  open the report      {first / 'report.html'}")
    terminal.print(f"  ask the student      distill compare --teacher tiny:teacher --system1 {first / 'student'} \\")
    terminal.print(f'                         --prompts "{PROMPTS[0]}"')
    if not config.system2:
        terminal.print("  reasoning in steps   distill demo --system2")
    terminal.print("  real Qwen, on a GPU  distill system1 --preset qwen2.5 --relabel")
    terminal.print("  every setting        distill system1 --help")


def table(summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Two or more summaries as lines of a table, a column each."""
    rows = (
        ("teacher's score", lambda of: _percent(of["models"]["teacher"]["score"])),
        ("base student's score", lambda of: _percent(of["models"]["base"]["score"])),
        ("student's score", lambda of: _percent(of["models"]["student"]["score"])),
        ("kept of the teacher's score", lambda of: _percent(of["retention"])),
        ("times as fast", lambda of: "-" if of["speedup"] is None else f"{of['speedup']:.1f}"),
        ("answers in several steps", lambda of: _percent(of["models"]["student"].get("several_steps"))),
    )
    yield f"{'':<29}" + "".join(f"{name:>10}" for name in summaries)
    for title, cell in rows:
        yield f"{title:<29}" + "".join(f"{cell(summary):>10}" for summary in summaries.values())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
