"""What a person sees: progress, notes and results in the terminal. The only place that knows rich.

Text from models and data is shown as it is: control characters are taken out and rich's own markup is never read from it.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from distill_lab.generate import Progress as Generated
from distill_lab.run import read_jsonl
from distill_lab.watch import Watch

PLAIN_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal to draw on (logs, CI)."""
NAMES = {"teacher": "teacher", "base": "base student", "student": "student"}


def clean(text: str) -> str:
    """`text` without characters that steer a terminal; line breaks stay."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


class Terminal(Watch):
    """Draws one progress bar for the stage that runs, and a line for each that is done."""

    def __init__(self) -> None:
        # On a CPU it warns that a faster kernel could be had from the hub; nothing is wrong.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        self.console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line, self._loss = 0.0, ""
        self._first: tuple[float, int] | None = None
        """When the running stage first told how far it was, and how far that was."""

    def stage(self, title: str) -> None:
        """A line for the stage; its bar comes with the first progress."""
        self._close_bar()
        self._last_line, self._first = time.monotonic(), None
        self.console.print(Text.assemble(("> ", "bold cyan"), (clean(title), "bold")))

    def skipped(self, title: str) -> None:
        """A line that says the stage stands as it was."""
        self._close_bar()
        self.console.print(Text(f"= {clean(title)}: done before, nothing changed", style="dim"))

    def note(self, text: str) -> None:
        """An indented line."""
        self._close_bar()
        self.console.print(Text(f"  {clean(text)}"))

    def print(self, what: Any) -> None:
        """Text (cleaned) or a rich table, as it is."""
        self._close_bar()
        self.console.print(Text(clean(what)) if isinstance(what, str) else what)

    def heading(self, title: str, subtitle: str = "") -> None:
        """A rule with a title."""
        self._close_bar()
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left")
        if subtitle:
            self.console.print(Text(subtitle, style="dim"))

    def progress(self, done: int, total: int, *, detail: str = "") -> None:
        """Move the bar; without a terminal, a line now and then."""
        if not self.console.is_terminal:
            now = time.monotonic()
            if self._first is None:
                self._first = now, done
            if now - self._last_line >= PLAIN_EVERY_S:
                # From the first report on: what loading took says nothing of the pace.
                seconds, news = now - self._first[0], done - self._first[1]
                left = f"  about {seconds / news * (total - done):.0f} s left" if news else ""
                self.console.print(Text(f"  {done}/{total}  {detail}{left}"))
                self._last_line = now
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  "), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, detail=detail)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, detail=detail)

    def generated(self, progress: Generated) -> None:
        """Progress of an engine."""
        self.progress(progress.done, progress.total, detail=f"{progress.tokens_per_s:,.0f} tok/s")

    def log(self, row: dict[str, Any]) -> None:
        """Training figures as progress, what the trainer has to say as a note."""
        if "note" in row:
            self.note(row["note"])
        elif "step" in row and "num_steps" in row:
            self._loss = f"loss {row['loss']:.3f}" if "loss" in row else self._loss
            self.progress(row["step"], row["num_steps"], detail=self._loss)

    def summary(self, summary: dict[str, Any], directory: Path) -> None:
        """The result, the table of models, the figures between them, the KPIs as met or missed, and where the files are."""
        from distill_lab.report.figure import headline

        self._close_bar()
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
            Text(f"everything is in {directory}: report.html, summary.json, every item in eval/", style="dim")
        )

    def _wrapped(self, text: str, *, style: str = "") -> None:
        """A sentence, broken between words at the terminal's width."""
        self.console.print(Text(clean(text), style=style), soft_wrap=False)

    def examples(self, folder: Path, *, number: int) -> None:
        """Some test prompts with what each model answered, first those the base student got wrong."""
        self.heading("Side by side")
        rows = {name: {row["id"]: row for row in read_jsonl(folder / f"{name}.jsonl")} for name in NAMES}
        for key in _telling(rows, number):
            self.console.print(Text(clean(rows["base"][key]["prompt"][-1]["content"]), style="bold"))
            for name, label in NAMES.items():
                row = rows[name][key]
                right = row["grade"]["score"] == 1
                mark = ("+ ", "green") if right else ("- ", "red")
                self.console.print(Text.assemble("  ", mark, f"{label:<13}", clean(row["output"]).strip()))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def _telling(rows: dict[str, dict[str, Any]], number: int) -> Iterator[str]:
    """Ids spread over the test: most where training changed something, and one where the student still fails."""

    def change(key: str) -> float:
        return rows["student"][key]["grade"]["score"] - rows["base"][key]["grade"]["score"]

    learned = [key for key in rows["base"] if change(key) > 0]
    failed = [key for key in rows["base"] if rows["student"][key]["grade"]["score"] == 0]
    step = max(1, len(learned) // max(1, number - 1))
    yield from [*learned[::step][: number - 1], *failed[:1]]


def _model_table(models: dict[str, Any]) -> Table:
    from distill_lab.compare import latency_tokens  # here, as the help shows no results and is to be there at once

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("score [95%]", "tokens/s", f"{latency_tokens(models)} tok p50/p95", "size", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, model in models.items():
        low_high = model.get("ci95")
        timed = model.get("tokens_per_s") is not None
        memory = model.get("peak_memory_bytes")
        table.add_row(
            NAMES.get(name, name),
            f"{model['score']:.1%} [{low_high[0]:.1%}, {low_high[1]:.1%}]" if low_high else "-",
            f"{model['tokens_per_s']:,.0f}" if timed else "-",
            f"{model['latency_p50_s']:.2f}/{model['latency_p95_s']:.2f} s" if timed else "-",
            f"{model['num_parameters'] / 1e6:,.1f}M" if timed else "-",
            f"{memory / 2**20:,.0f} MiB" if memory else "-",
        )
    return table


def _findings(summary: dict[str, Any]) -> Iterator[str]:
    from distill_lab.compare import times
    from distill_lab.verdict import tenths

    metric = summary["metric"]["short"] if summary["metric"] else "score"
    for key, title in (("retention", "retention"), ("similarity", "similarity")):
        if summary.get(key) is not None:
            teacher = summary["models"]["teacher"]["score"]
            base = (summary["models"].get("base") or {}).get("score")
            beside = f"; base student {tenths(base / teacher)}" if base is not None else ""
            yield f"{title:<11}{tenths(summary[key])}  of the teacher's {metric}{beside}"
    if summary.get("speedup") is not None:
        smaller, batched, single = (times(summary[f"speedup{way}"], "x") for way in ("", "_batched", "_single"))
        yield f"speedup    {smaller}   ({batched} in batches, {single} one at a time)"
    if summary.get("gain") is not None:
        yield f"gain       {100 * summary['gain']:+.1f} points over the base student, p = {summary['p_value']:.2g}"
