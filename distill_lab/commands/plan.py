"""Show what a recipe will need before it starts: downloads, memory, tokens, time, and what to change if it does not fit.

In: a recipe and its settings, as they would be given to it. Out: a table of the stages; exit code 2 if the recipe cannot
run here as it is. Loads no weights, downloads nothing, generates nothing, and takes some seconds.

    distill plan system1 --preset qwen2.5
    distill plan verified --teacher Qwen/Qwen2.5-Math-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --data problems.jsonl
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab import config as settings

if TYPE_CHECKING:
    from distill_lab.planning.forecast import Forecast, StageForecast
    from distill_lab.planning.volume import Lengths, Volume

WIDTH = 80
TAKES_RECIPE = True
"""The first argument names a recipe; the others are its settings."""


class Config(settings.Config):
    """`distill plan RECIPE` takes the recipe's settings: `distill RECIPE --help` lists them."""


def main(recipe: str | Config, config: settings.RecipeConfig | None = None, directory: Path | None = None,
         notes: Sequence[str] = ()) -> int:  # fmt: skip
    """Print the forecast; 2 if the recipe cannot run as it is."""
    from distill_lab.errors import UserError
    from distill_lab.planning.forecast import make_forecast
    from distill_lab.planning.machine import this_machine
    from distill_lab.terminal import Terminal

    if isinstance(recipe, Config) or config is None or directory is None:
        raise UserError("which recipe? for example: distill plan system1 --preset tiny")
    terminal = Terminal()
    for note in notes:
        terminal.note(note)
    forecast = make_forecast(recipe, config, directory=directory, machine=this_machine())
    terminal.finished("")
    for line in render(forecast):
        terminal.print(line)
    return 2 if forecast.problems else 0


def render(forecast: Forecast) -> Iterator[str]:
    """The lines of a forecast, for a terminal of 80 columns."""
    from distill_lab.planning.memory_estimate import gigabytes

    yield ""
    yield f"distill {forecast.recipe} on {forecast.machine}, {gigabytes(forecast.machine.usable)} of memory to use"
    yield ""
    yield "Models and data"
    for each in forecast.downloads:
        size = f", {gigabytes(each.bytes)}" if each.bytes else ""
        yield from _wrapped(f"{each.role:<9}{each.name}: {each.place}{size}", indent=2)
    total = sum(each.bytes for each in forecast.downloads)
    if total:
        yield f"  {gigabytes(total)} to download"
    yield f"  {gigabytes(forecast.disk_bytes)} of disk for checkpoints and student, {gigabytes(forecast.free_bytes)} free"
    yield ""
    yield "Work"
    for line in _volume(forecast.volume):
        yield from _wrapped(line, indent=2)
    yield ""
    yield f"  {'stage':<25}{'tokens':>17}{'memory':>10}{'time':>13}"
    for stage in forecast.stages:
        memory = gigabytes(stage.memory.total) if stage.memory else "-"
        tokens = f"{_count(stage.tokens_in)}" + (f" + {_count(stage.tokens_out)}" if stage.tokens_out else "")
        yield f"  {stage.name:<25}{tokens if stage.tokens_in else '-':>17}{memory:>10}{_time(stage.seconds):>13}"
        yield from _wrapped(stage.how, indent=6)
    yield f"  {'all':<52}{_time(forecast.seconds):>13}"
    if forecast.tokenizers:
        yield ""
        yield "Tokenizers"
        for line in forecast.tokenizers:
            yield from _wrapped(line, indent=2)
    for title, lines in (("Before you start", forecast.warnings), ("Does not work as it is", forecast.problems)):
        if lines:
            yield ""
            yield title
            for line in lines:
                yield from _wrapped(line, indent=2)
    if not forecast.problems:
        yield ""
        yield f"Nothing speaks against it: distill {forecast.recipe} with the same settings."


def brief(forecast: Forecast) -> Iterator[str]:
    """The same in a few lines: time, memory, downloads, and what speaks against it."""
    from distill_lab.planning.memory_estimate import gigabytes

    def parts(stages: Sequence[StageForecast]) -> str:
        known = [each for each in stages if each.seconds is not None and each.seconds >= (forecast.seconds or 0) / 20]
        return ", ".join(f"{each.name} {_time(each.seconds).removeprefix('~ ')}" for each in known)

    yield from _wrapped(f"time: {_time(forecast.seconds)} in all: {parts(forecast.stages)}", indent=0)
    if forecast.peak and forecast.peak.memory:
        need, have = gigabytes(forecast.peak.memory.total), gigabytes(forecast.machine.usable)
        yield from _wrapped(
            f"memory: at most {need} of {have}, in {forecast.peak.name} ({forecast.peak.how})", indent=0
        )
    total = sum(each.bytes for each in forecast.downloads)
    fetched = f"{gigabytes(total)} to download, " if total else ""
    kept, free = gigabytes(forecast.disk_bytes), gigabytes(forecast.free_bytes)
    yield f"disk: {fetched}{kept} for checkpoints and student, {free} free"
    for title, lines in (("before you start", forecast.warnings), ("does not work as it is", forecast.problems)):
        for line in lines:
            yield from _wrapped(f"{title}: {line}", indent=0)


def _volume(volume: Volume) -> Iterator[str]:
    if volume.note:
        yield f"{volume.note}; assumed: {volume.rows:,} prompts"
    else:
        more = "" if volume.complete else "more than "
        yield f"{more}{volume.rows:,} prompts to learn from, {volume.test_rows:,} to test on"
        yield f"prompts: {_lengths(volume.prompt)}"
    if volume.shared_tokens:
        yield f"the teacher also reads {volume.shared_tokens:,} tokens of rules before each prompt"
    yield f"answers: {_lengths(volume.answer)} ({volume.answers_from})"


def _lengths(lengths: Lengths) -> str:
    about = "" if lengths.measured else "about "
    if lengths.longest == lengths.mean:
        return f"{about}{lengths.mean:.0f} tokens each"
    return (
        f"{about}{lengths.mean:.0f} tokens on average, 95% up to {lengths.p95:.0f}, the longest {lengths.longest:.0f}"
    )


def _wrapped(text: str, *, indent: int) -> list[str]:
    """`text` in lines of at most WIDTH characters, each indented; long names are not broken."""
    prefix = " " * indent
    return textwrap.wrap(
        text, WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False
    )


def _count(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number >= 1e4 else f"{number:.0f}"


def _time(seconds: float | None) -> str:
    from distill_lab.formatting import duration

    return "not known" if seconds is None else f"~ {duration(seconds)}"
