"""Terminal output: progress, notes and results. The only module that uses rich for progress.

Text from models and data is printed literally: control characters are removed and rich markup is not interpreted.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import RLock, Thread
from typing import Any
from weakref import WeakMethod, WeakSet, finalize, ref

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill_lab import activity
from distill_lab.activity import Activity
from distill_lab.files.jsonl import read_jsonl
from distill_lab.formatting import clean, duration
from distill_lab.generation.progress import Progress as Generated
from distill_lab.progress import BY_PACE, ProgressReporter

PLAIN_EVERY_S, LONG_PLAIN_EVERY_S = 9.0, 30.0
"""Seconds between progress lines without a terminal (logs, CI): at first, and after LONG_STAGE_S of a stage."""
LONG_STAGE_S = 300.0
MIN_STEPS, MIN_SECONDS = 2, 5.0
"""Steps that must be done, and seconds that must have passed, before the remaining time is estimated."""
BAR_WIDTH = 20
NAMES = {"teacher": "teacher", "base": "base student", "student": "student"}


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

    def print(self, what: Any) -> None:
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

    def log(self, row: dict[str, Any]) -> None:
        """Show training metrics as progress, and the trainer's notes as notes."""
        if "note" in row:
            self.note(row["note"])
        elif "step" in row and "num_steps" in row:
            if "loss" in row:
                apart = "".join(f", {name} {value:.3f}" for name, value in row.get("metrics", {}).items())
                self._loss = f"loss {row['loss']:.3f}{apart}"
            self.progress(row["step"], row["num_steps"], detail=self._loss)

    def tick(self) -> None:
        """Without a terminal: print a status line if something is running and the last line is old enough."""
        with self._lock:
            now = self._clock()
            every = PLAIN_EVERY_S if now - self._began < LONG_STAGE_S else LONG_PLAIN_EVERY_S
            if not self.console.is_terminal and self._is_busy and now - self._shown_at >= every:
                self.console.print(Text(f"  {self._life()}"))
                self._shown_at = now

    @property
    def _is_busy(self) -> bool:
        return bool(self._title or self._doing)

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
        if self.console.is_terminal:
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
        bar: Any = Spinner("dots") if count is None else ProgressBar(count.total, count.done, width=BAR_WIDTH)
        line.add_row(" ", bar, life)
        return line

    def close(self) -> None:
        """Stop showing status and stop listening."""
        self.finished("")
        self._listening.close()

    def summary(self, summary: dict[str, Any], directory: Path) -> None:
        """Print the result, the table of models, comparisons between them, KPIs as met or missed, and the file paths."""
        from distill_lab.report.figure import headline

        self.finished("")
        self.console.print()
        self._wrapped(headline(summary), style="bold")
        if summary["models"]:
            metric = summary["metric"]
            self._wrapped(
                f"score: {metric['name'] if metric else 'mean grade'}, on {summary['n']:,} prompts", style="dim"
            )
            self.console.print()
            self.console.print(_model_table(summary["models"]))
            self.console.print()
        for line in _findings(summary):
            self.console.print(Text(clean(line)))
        for name, met in summary["kpis"].items():
            self.console.print(Text.assemble(("met    " if met else "missed ", "green" if met else "red"), name))
        for line in summary["notes"]:
            self._wrapped(line)
        for line in summary["advice"]:
            self._wrapped(line, style="yellow")
        self.console.print(
            Text(f"all files are in {directory}: report.html, summary.json, graded answers in eval/", style="dim")
        )

    def _wrapped(self, text: str, *, style: str = "") -> None:
        """Print a sentence, wrapped between words at the terminal's width."""
        self.console.print(Text(clean(text), style=style), soft_wrap=False)

    def examples(self, folder: Path, *, number: int) -> None:
        """Print some test prompts with each model's answer, first prompts that the base student got wrong."""
        self.heading("Side by side")
        rows = {name: {row["id"]: row for row in read_jsonl(folder / f"{name}.jsonl")} for name in NAMES}
        for key in _telling(rows, number):
            self.console.print(Text(clean(rows["base"][key]["prompt"][-1]["content"]), style="bold"))
            for name, label in NAMES.items():
                row = rows[name][key]
                right = row["grade"]["score"] == 1
                mark = ("+ ", "green") if right else ("- ", "red")
                self.console.print(Text.assemble("  ", mark, f"{label:<13}", clean(row["output"]).strip()))

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


def _telling(rows: dict[str, dict[str, Any]], number: int) -> Iterator[str]:
    """Ids of prompts from all over the test set: mostly ones that training improved, and one the student still fails."""

    def change(key: str) -> float:
        return rows["student"][key]["grade"]["score"] - rows["base"][key]["grade"]["score"]

    learned = [key for key in rows["base"] if change(key) > 0]
    failed = [key for key in rows["base"] if rows["student"][key]["grade"]["score"] == 0]
    step = max(1, len(learned) // max(1, number - 1))
    yield from [*learned[::step][: number - 1], *failed[:1]]


def _model_table(models: dict[str, Any]) -> Table:
    """A table with a row per model, at most 80 characters wide."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("score [95%]", "cut", "tokens/s", "p50/p95", "size", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, model in models.items():
        low_high = model.get("ci95")
        timed = model.get("tokens_per_s") is not None
        memory = model.get("peak_memory_bytes")
        table.add_row(
            NAMES.get(name, name),
            f"{model['score']:.1%} [{100 * low_high[0]:.1f}, {100 * low_high[1]:.1f}]" if low_high else "-",
            "-" if model.get("cut_share") is None else f"{model['cut_share']:.0%}",
            f"{model['tokens_per_s']:,.0f}" if timed else "-",
            _latency(model) if timed else "-",
            _size(model["num_parameters"]) if timed else "-",
            _memory(memory) if memory else "-",
        )
    return table


def _latency(model: dict[str, Any]) -> str:
    p50, p95 = (model[key] for key in ("latency_p50_s", "latency_p95_s"))
    digits = 2 if p50 < 10 else 0
    return f"{p50:.{digits}f}/{'-' if p95 is None else f'{p95:.{digits}f}'} s"


def _size(number: int) -> str:
    if number >= 1e9:
        return f"{number / 1e9:,.1f}B"
    return f"{number / 1e6:.{0 if number >= 1e8 else 1}f}M"


def _memory(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number < 1000 * 2**20 else f"{number / 2**30:,.1f} GiB"


def _findings(summary: dict[str, Any]) -> Iterator[str]:
    from distill_lab.evaluation.summary import latency_tokens, no_p95, ran_on
    from distill_lab.evaluation.verdict import tenths
    from distill_lab.formatting import times

    metric = summary["metric"]["short"] if summary["metric"] else "score"
    for key, title in (("retention", "retention"), ("similarity", "similarity")):
        if summary.get(key) is not None:
            teacher = summary["models"]["teacher"]["score"]
            base = (summary["models"].get("base") or {}).get("score")
            beside = f"; base student {tenths(base / teacher)}" if base is not None else ""
            yield f"{title:<11}{tenths(summary[key])}  of the teacher's {metric}{beside}"
    if summary.get("retention_reason"):
        yield f"retention  not reported: {summary['retention_reason']} of the answers"
    if summary.get("speedup") is not None:
        for way, title in (("batched", "in batches"), ("single", "one at a time")):
            per_token = summary.get(f"speedup_per_token_{way}")
            beside = f"; {times(per_token, 'x')} per token" if per_token is not None else ""
            yield f"{'speedup':<11}{times(summary[f'speedup_{way}'], 'x')}  per answer, {title}{beside}"
    if timed_with := ran_on(summary["models"]):
        yield f"{'timed with':<11}{timed_with}"
        yield f"{'p50/p95':<11}seconds for one answer of {latency_tokens(summary['models'])} tokens at batch size 1"
    for name, model in summary["models"].items():
        if reason := no_p95(model):
            yield f"{'p95':<11}{NAMES.get(name, name)}: {reason}"
    if summary.get("gain") is not None:
        yield f"gain       {100 * summary['gain']:+.1f} points over the base student, p = {summary['p_value']:.2g}"
