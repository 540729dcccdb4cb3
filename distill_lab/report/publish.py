"""A run's result, written: scores and speeds -> summary.json, report.html, report.md and the student's model card.

Summary and page are also written before speeds are measured.

    published(run, lambda speeds: summarize(..., speeds=speeds), timing=lambda before: measure(...))

Speeds load every model once more. A process that is killed there, for the memory it takes, leaves the scores; speeds that
cannot be taken are a note, not the end of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.errors import DataError, UserError
from distill_lab.evaluation.speedups import Speed
from distill_lab.evaluation.summary_file import Summary, write_summary
from distill_lab.files.bookkeeping import read_record
from distill_lab.run import Run

Speeds = Mapping[str, Speed]
"""Model ("teacher", "student") -> its Speed; empty if none was taken."""
Timing = Callable[[Callable[[], None]], Speeds]


def published(run: Run, summarized: Callable[[Speeds], Summary], timing: Timing | None) -> Summary:
    """Write `summarized(speeds)` with its pages and the model card, and return it.

    timing: measures speeds, and calls its argument just before it does; None: no speeds. Memory is given back before and
    after it. A UserError from it, or that it found too little memory, becomes a note. The run's trackers get the summary.
    """
    from distill_lab.report.trackers import log_proof

    summary = _published(run, summarized, timing)
    log_proof(run, summary)
    return summary


def _published(run: Run, summarized: Callable[[Speeds], Summary], timing: Timing | None) -> Summary:
    from distill_lab.device import free_memory
    from distill_lab.report.page import write_report

    if timing is None:
        return _write(run, summarized({}))

    def before() -> None:
        write_summary(run.path("summary.json"), summarized({}))
        write_report(run.directory)

    speeds: Speeds = {}
    reason = ""
    free_memory()
    try:
        speeds = timing(before)
    except (UserError, RuntimeError, MemoryError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"Speed not measured: {lines[0]}"
    free_memory()
    summary = summarized(speeds)
    if reason:
        run.watch.note(reason)
        summary = dataclasses.replace(summary, notes=(*summary.notes, reason))
    return _write(run, summary)


def _write(run: Run, summary: Summary) -> Summary:
    from distill_lab.report.markdown import write_markdown
    from distill_lab.report.model_card import write_run_card
    from distill_lab.report.page import write_report

    write_summary(run.path("summary.json"), summary)
    write_report(run.directory)
    write_markdown(run.directory)
    write_run_card(run.directory)
    return summary


def training_losses(run: Run, student: ModelConfig | None) -> tuple[float, float] | None:
    """Validation loss before and after the training of `student`, nats per token; None if none was taken."""
    if student is None:
        return None
    for folder in (Path(student.model).parent, run.directory):
        if (folder / "training.json").is_file():
            try:
                found = read_record(folder / "training.json")
            except DataError as error:
                run.watch.note(f"{error}; the report leaves out the validation losses")
                return None
            losses = [found.get(f"validation_loss_{when}") for when in ("before", "after")]
            before, after = (each if isinstance(each, (int, float)) else None for each in losses)
            return None if before is None or after is None else (before, after)
    return None
