"""Terminal output: progress, notes and results. The only module that uses rich for progress.

Text from models and data is printed literally: control characters are removed and rich markup is not interpreted.
"""

from __future__ import annotations

import atexit
import logging
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import RLock, Thread
from typing import TYPE_CHECKING
from weakref import WeakMethod, WeakSet, finalize, ref

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill_lab import activity
from distill_lab.activity import BY_PACE, Activity, ProgressReporter
from distill_lab.formatting import clean, duration
from distill_lab.generation.progress import Progress as Generated
from distill_lab.types import JsonObject

if TYPE_CHECKING:
    from distill_lab.evaluation.eval_rows import EvalRow
    from distill_lab.evaluation.summary_file import Summary

PLAIN_EVERY_S, LONG_PLAIN_EVERY_S = 9.0, 30.0
"""Seconds between progress lines without a terminal (logs, CI): at first, and after LONG_STAGE_S of a stage."""
LONG_STAGE_S = 300.0
MIN_STEPS, MIN_SECONDS = 2, 5.0
"""Steps that must be done, and seconds that must have passed, before the remaining time is estimated."""
BAR_WIDTH = 20
NAMES = {"teacher": "teacher", "base": "base student", "student": "student"}
KPI_STYLES = {"met": "green", "missed": "red", "open": "yellow"}
KPI_WIDTH = 7


class Terminal(ProgressReporter):
    """Prints a line for each stage, and status while something runs: what, how far, since when, how long still.

    In a terminal, one status line is updated in place; in a log or pipe, a line is printed now and then. Listens to what
    the process reports (`activity`) from its creation until `close`. clock, ticking: for tests, which call `tick`.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, ticking: bool = True) -> None:
        # On a CPU it warns that the hub has a faster kernel; nothing is wrong.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        self.console = Console(highlight=False, soft_wrap=True)
        self._clock, self._ticking = clock, ticking
        self._live: Live | None = None
        self._ticker: Thread | None = None
        self._lock = RLock()
        self._title = self._loss = ""
        self._began = self._shown_at = clock()
        self._count: _Count | None = None
        self._doing: Activity | None = None
        self._doing_since = clock(), 0
        """Start time of the activity, and its count then."""
        self._listening = ExitStack()
        weak = WeakMethod(self.doing)

        def hear(heard: Activity | None) -> None:
            if (doing := weak()) is not None:
                doing(heard)

        self._listening.enter_context(activity.listening(hear))
        finalize(self, self._listening.close)
        _open.add(self)

    def stage(self, title: str) -> None:
        """Print a line for the stage, and show its status from now on."""
        with self._lock:
            self.console.print(Text.assemble(("> ", "bold cyan"), (clean(title), "bold")))
            self._title, self._count, self._doing, self._loss = title, None, None, ""
            self._began = self._shown_at = self._clock()
            self._show_life()

    def finished(self, title: str) -> None:
        """Stop showing status until the next stage or activity starts."""
        with self._lock:
            self._title, self._count, self._doing = "", None, None
            self._close_live()

    def skipped(self, title: str) -> None:
        """Print a line that says the stage is already done."""
        self.finished(title)
        self.console.print(Text(f"= {clean(title)}: already done, nothing changed", style="dim"))

    def note(self, text: str) -> None:
        """Print an indented line."""
        self.print(Text(f"  {clean(text)}"))

    def print(self, what: RenderableType) -> None:
        """Print text (cleaned), or a rich renderable as it is."""
        with self._lock:
            self.console.print(Text(clean(what)) if isinstance(what, str) else what)

    def heading(self, title: str, subtitle: str = "") -> None:
        """Print a rule with a title."""
        self.finished("")
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left")
        if subtitle:
            self.console.print(Text(subtitle, style="dim"))

    def progress(self, done: int, total: int, *, detail: str = "", seconds_left: float | None = BY_PACE) -> None:
        """See `ProgressReporter`."""
        with self._lock:
            now = self._clock()
            first = self._count.first if self._count else (now, done)
            by_pace = seconds_left == BY_PACE
            if by_pace:
                seconds_left = _left(now - first[0], done - first[1], total - done)
            self._count = _Count(done, total, detail, seconds_left, first, by_pace)
            self._doing = None
            self._show_life()
        self.tick()

    def doing(self, activity: Activity | None) -> None:
        """See `ProgressReporter`."""
        with self._lock:
            if activity is None:
                self._doing = None
                if not self._title:
                    self._close_live()
                return
            if self._doing is None or self._doing.text != activity.text:
                self._doing_since = self._clock(), activity.done or 0
            if not self._title and self._doing is None:
                self._began = self._shown_at = self._clock()
            self._doing = activity
            self._show_life()
        self.tick()

    def generated(self, progress: Generated) -> None:
        """Show progress of generation."""
        self.progress(progress.done, progress.total, detail=progress.detail, seconds_left=progress.seconds_left)

    def log(self, row: JsonObject) -> None:
        """Show training metrics as progress, and the trainer's notes as notes."""
        step, total, loss, metrics = (row.get(name) for name in ("step", "num_steps", "loss", "metrics"))
        if "note" in row:
            self.note(str(row["note"]))
        elif isinstance(step, int) and isinstance(total, int):
            if isinstance(loss, (int, float)):
                parts = metrics.items() if isinstance(metrics, dict) else ()
                self._loss = f"loss {loss:.3f}{''.join(f', {name} {value:.3f}' for name, value in parts)}"
            self.progress(step, total, detail=self._loss)

    def tick(self) -> None:
        """Without a terminal: print a status line if something is running and the last line is old enough."""
        with self._lock:
            now = self._clock()
            every = PLAIN_EVERY_S if now - self._began < LONG_STAGE_S else LONG_PLAIN_EVERY_S
            if not self._in_place and self._is_busy and now - self._shown_at >= every:
                self.console.print(Text(f"  {self._life()}"))
                self._shown_at = now

    @property
    def _is_busy(self) -> bool:
        return bool(self._title or self._doing)

    @property
    def _in_place(self) -> bool:
        """Whether a line can be updated in place: FORCE_COLOR, which notebooks set, makes a pipe colored and no terminal."""
        return self.console.is_terminal and (self.console.file.isatty() or "FORCE_COLOR" not in os.environ)

    def _life(self) -> str:
        """Status text: what is being done, how far, since when, how long still."""
        now, count, doing = self._clock(), self._count, self._doing
        parts = [f"{count.done:,}/{count.total:,}"] if count else []
        if doing:
            parts.append(clean(str(doing)))
        elif not count:
            parts.append(clean(self._title))
        # Showing two "reading" counts at once would leave no room for the time.
        if count and not (doing and count.detail.startswith("reading")):
            parts.append(count.detail)
        left = count.seconds_left if count else None
        if doing and doing.done is not None and doing.total and (count is None or count.by_pace):
            since, first = self._doing_since
            left = _left(now - since, doing.done - first, doing.total - doing.done)
        if left:
            parts.append(f"about {duration(left)} left")
        elif doing and doing.done is None:
            parts.append(f"for {duration(now - self._doing_since[0])}")
        else:
            parts.append(f"{duration(now - self._began)} so far")
        return ", ".join(filter(None, parts))

    def _show_life(self) -> None:
        if self._in_place:
            if self._live is None:
                self._live = Live(get_renderable=self._line, console=self.console, transient=True, refresh_per_second=4)
                self._live.start()
        elif self._ticking and (self._ticker is None or not self._ticker.is_alive()):
            self._ticker = Thread(target=_tick_on, args=(ref(self),), name="status", daemon=True)
            self._ticker.start()

    def _line(self) -> Table:
        """The status line that the terminal updates in place."""
        count, line = self._count, Table.grid(padding=(0, 1))
        life = Text(self._life(), no_wrap=True, overflow="ellipsis")
        bar: RenderableType = (
            Spinner("dots") if count is None else ProgressBar(count.total, count.done, width=BAR_WIDTH)
        )
        line.add_row(" ", bar, life)
        return line

    def close(self) -> None:
        """Stop showing status and stop listening."""
        self.finished("")
        self._listening.close()

    def summary(self, summary: Summary, directory: Path) -> None:
        """Print the result, the table of models, figures with intervals, goals as met, missed or open, and file paths."""
        from distill_lab.report import result_text
        from distill_lab.report.advice import advice_lines
        from distill_lab.report.figure import headline
        from distill_lab.train.training_log import NAME as TRAINING_LOG

        self.finished("")
        self.console.print()
        self.wrapped(headline(summary), style="bold")
        if summary.models:
            metric = summary.metric.name if summary.metric else "mean grade"
            self.wrapped(f"score: {metric}, on {summary.n:,} prompts", style="dim")
            self.console.print()
            self.console.print(result_text.model_table(summary.models))
            self.console.print()
        for line in result_text.findings(summary):
            self.wrapped(line, indent=len(result_text.GAP))
        for name, kpi in summary.kpis.items():
            first, *more = result_text.goal_lines(name, kpi)
            self.wrapped(first, style=KPI_STYLES[kpi.status], label=kpi.status, indent=KPI_WIDTH)
            for line in more:
                self.wrapped(" " * KPI_WIDTH + line, indent=KPI_WIDTH)
        for line in summary.notes:
            self.wrapped(line)
        for line in advice_lines(summary, directory / TRAINING_LOG):
            self.wrapped(line, style="yellow")
        self.console.print(Text(clean(result_text.place_text(directory)), style="dim"))

    def wrapped(self, text: str, *, style: str = "", label: str = "", indent: int = 0) -> None:
        """Print a sentence, wrapped between words at the terminal's width.

        indent: spaces before all lines but the first. label: text before the first line, in `style`; without it the style is
        that of the whole sentence.
        """
        width = max(self.console.width, 2 * indent + 20)
        if label:
            text = f"{label:<{indent}}{text}"
        lines = textwrap.wrap(clean(text), width, subsequent_indent=" " * indent, break_on_hyphens=False)
        for number, line in enumerate(lines):
            shown = Text(line, style="" if label else style)
            if label and number == 0:
                shown.stylize(style, 0, len(label))
            self.console.print(shown)

    def examples(self, folder: Path, *, number: int) -> None:
        """Print some test prompts with each model's answer, first prompts that the base student got wrong."""
        from distill_lab.evaluation.eval_rows import first_samples

        self.heading("Side by side")
        rows = {name: {row.id: row for row in first_samples(folder / f"{name}.jsonl")} for name in NAMES}
        for key in _telling(rows, number):
            self.console.print(Text(clean(rows["base"][key].text), style="bold"))
            for name, label in NAMES.items():
                row = rows[name][key]
                mark = ("+ ", "green") if row.score == 1 else ("- ", "red")
                self.console.print(Text.assemble("  ", mark, f"{label:<13}", clean(row.output).strip()))

    def _close_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


_open: WeakSet[Terminal] = WeakSet()


@atexit.register
def close_all() -> None:
    """Close all open terminals, so that no status line is left behind."""
    for terminal in list(_open):
        terminal.close()


@dataclass(frozen=True, slots=True)
class _Count:
    """Latest progress of the running stage."""

    done: int
    total: int
    detail: str
    seconds_left: float | None
    first: tuple[float, int]
    """Time and count of the stage's first report; loading before it would distort the speed."""
    by_pace: bool
    """Whether to estimate the time left from the counts; False if the caller estimates it, as parts differ in speed."""


def _left(seconds: float, done: int, left: int) -> float | None:
    """Seconds left after `done` steps in `seconds`; None until there is enough of both for an estimate."""
    return seconds / done * left if done >= MIN_STEPS and seconds >= MIN_SECONDS else None


def _tick_on(terminal: ref[Terminal]) -> None:
    """Tick once a second while there is something to show."""
    while (shown := terminal()) is not None and shown._is_busy:
        shown.tick()
        del shown
        time.sleep(1)


def _telling(rows: Mapping[str, Mapping[str, EvalRow]], number: int) -> Iterator[str]:
    """Ids of prompts from all over the test set: mostly ones that training improved, and one the student still fails."""
    base, student = rows["base"], rows["student"]
    learned = [key for key in base if student[key].score > base[key].score]
    failed = [key for key in base if student[key].score == 0]
    step = max(1, len(learned) // max(1, number - 1))
    yield from [*learned[::step][: number - 1], *failed[:1]]
