"""Run the lab on this machine with the tiny models: offline, a few minutes on two CPU cores.

In: nothing. Out: runs/demo/system1 and runs/demo/system2, each with a trained student, scores, speeds and report.html;
prints the results and answers of teacher and students. It demonstrates the pipeline on models of a few million parameters,
not Qwen's quality. Both students are distilled at the same time, on one CPU core each; speed is measured afterward.

    distill demo
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab import config as settings
from distill_lab.commands._cell_output import PROGRESS
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from distill_lab.evaluation.summary_file import Summary
    from distill_lab.terminal import Terminal

PROMPTS = (
    "Sort these words from A to Z: pear, cat, hat",
    "Tom has 14 pens. Tom buys 3 boxes with 5 pens each. Tom gives 9 to Mia. How many pens does Tom have now?",
    "A train travels 120 km in 4 hours. How many km does it travel in one hour?",
)
SYSTEM2_SPLIT, SYSTEM2_EPOCHS = "distill[:4000]", 5
"""Less than in the tiny preset, so that both students finish at about the same time."""
MEASURE_S = 30.0
"""Seconds for the speed of each model: answers of these models take milliseconds."""
COLUMN = 16
"""Column width of the final table, in characters."""


class Config(settings.Config):
    """Settings of `distill demo`."""

    run: Path = Path("runs/demo")
    """Output directory; run the same command again to resume."""


def main(config: Config) -> int:
    """Run the recipes, print the results and the next commands to try."""
    from distill_lab.evaluation.compare import compare_models
    from distill_lab.recipes import system1, system2
    from distill_lab.report.side_by_side import LINE, TEACHER_CHARS, render_comparison
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    first, second = config.run / "system1", config.run / "system2"
    follow, reason = system1.PRESETS["tiny"], system2.PRESETS["tiny"]
    data = reason.data.model_copy(update={"split": SYSTEM2_SPLIT})
    train = reason.train.model_copy(update={"num_epochs": SYSTEM2_EPOCHS})
    engine = follow.engine.model_copy(update={"measure_budget_s": MEASURE_S})
    follow = follow.model_copy(update={"engine": engine})
    reason = reason.model_copy(update={"data": data, "train": train, "engine": engine})
    with _beside("system2", reason.model_copy(update={"measure": False}), second) as (process, log):
        terminal.heading(
            "System 1: instruction following", "a 10-layer teacher writes the answers, a 2-layer student learns"
        )
        with _one_thread():
            system1.run(follow.model_copy(update={"measure": False}), first, watch=terminal)
        terminal.heading(
            "System 2: reasoning in steps",
            "meanwhile, the same teacher solved word problems, and another student learned from its solutions",
        )
        if code := _follow(process, log, terminal):
            return code
    terminal.heading("Speed", "each student and its teacher take turns, with nothing else running")
    summaries = {"System 1": system1.run(follow, first), "System 2": system2.run(reason, second)}
    for (name, summary), directory in zip(summaries.items(), (first, second), strict=True):
        terminal.heading(name)
        terminal.summary(summary, directory)
    terminal.examples(first / "eval", number=4)
    terminal.heading("Both, side by side")
    for line in table(summaries):
        terminal.print(line)
    models = {"Teacher": "tiny:teacher", "System 1": str(first / "student"), "System 2": str(second / "student")}
    comparisons = compare_models(PROMPTS, models, step_by_step={"System 2"})
    width = min(terminal.console.width, LINE)
    terminal.print(render_comparison(comparisons, max_chars={"Teacher": TEACHER_CHARS}, width=width))
    terminal.heading("What to do next")
    terminal.print(f"  open the reports     {first / 'report.html'}  {second / 'report.html'}")
    terminal.print(f"  ask the students     distill compare --teacher tiny:teacher --system1 {first / 'student'} \\")
    terminal.print(f'                         --system2 {second / "student"} --prompts "{PROMPTS[0]}"')
    terminal.print(f"  talk to one          distill chat {first}")
    terminal.print(f"  take it to Ollama    distill export {first} --to ollama")
    terminal.print("  all of System 2      distill system2 --preset tiny      twice the problems, a better student")
    terminal.print("  real Qwen, on a GPU  distill system1 --preset qwen2.5 --relabel")
    terminal.print("  every setting        distill system1 --help")
    return 0


@contextmanager
def _beside(name: str, config: settings.Config, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run recipe `name` in a separate process (`alone`) with its output in a file; stop it when the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "demo.log"
    command = [sys.executable, "-m", __name__, name, str(directory)]
    with log.open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(config.model_dump_json().encode())
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one core, because the other process uses the other one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _follow(process: subprocess.Popen[bytes], log: Path, terminal: Terminal) -> int:
    """Print the process's output, past and to come, until it ends; return its exit code."""
    with log.open(encoding="utf-8") as output:
        late = False
        while True:
            ended = process.poll() is not None
            for line in output.read().splitlines():
                if line.strip() and (late or not PROGRESS.match(line)):
                    terminal.print(line)
            if ended:
                return process.returncode
            late = True
            time.sleep(1)


def table(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Lines of a table with a column for each summary."""
    from distill_lab.evaluation.verdict import percent

    def score(of: Summary, name: str) -> str:
        model = of.models.get(name)
        return "-" if model is None or model.score is None else f"{model.score:.1%}"

    def several_steps(of: Summary) -> str:
        model = of.models.get("student")
        return "-" if model is None or model.several_steps is None else percent(model.several_steps)

    rows: tuple[tuple[str, Callable[[Summary], str]], ...] = (
        ("score", lambda of: of.metric.short if of.metric else "-"),
        ("teacher's score", lambda of: score(of, "teacher")),
        ("base student's score", lambda of: score(of, "base")),
        ("student's score", lambda of: score(of, "student")),
        ("retention", lambda of: "-" if of.retention is None else percent(of.retention)),
        ("speedup in batches", lambda of: _times(of.speedup_batched)),
        ("speedup one at a time", lambda of: _times(of.speedup_single)),
        ("answers in several steps", several_steps),
    )
    yield f"{'':<29}" + "".join(f"{name:>{COLUMN}}" for name in summaries)
    for title, cell in rows:
        yield f"{title:<29}" + "".join(f"{cell(summary):>{COLUMN}}" for summary in summaries.values())


def _times(ratio: float | None) -> str:
    from distill_lab.formatting import times

    return "-" if ratio is None else times(ratio, "x")


def alone(name: str, directory: Path) -> None:
    """Run a recipe with settings given as JSON on standard input; the parent process prints the output."""
    from distill_lab.terminal import Terminal

    recipe = import_module(f"distill_lab.recipes.{name}")
    recipe.run(recipe.Config.model_validate_json(sys.stdin.read()), directory, watch=Terminal())


if __name__ == "__main__":
    try:
        alone(sys.argv[1], Path(sys.argv[2]))
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(2)
