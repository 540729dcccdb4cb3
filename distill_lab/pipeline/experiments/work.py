"""What a variant took: a finished run -> training rows, steps, seconds, and the teacher's work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill_lab.evaluation.experiment import TeacherWork
from distill_lab.evaluation.summary_file import Summary
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.jsonl import read_jsonl
from distill_lab.report.run_student import read_run, student_of
from distill_lab.run import StageRecord

TEACHER_STAGES = ("teacher answers", "teacher solutions")
"""Stages in which recipes let the teacher write answers to learn from."""


@dataclass(frozen=True)
class Work:
    """What a training took; see `VariantResult`."""

    rows: int
    steps: int
    train_seconds: float
    losses: tuple[float, float] | None
    teacher: TeacherWork | None


def variant_work(run_dir: Path, summary: Summary) -> Work:
    """The Work of a finished run."""
    run, _ = read_run(run_dir)
    stages = run["stages"]
    beside = Path(student_of(run_dir).model).parent / "training.json"
    found = read_record(beside if beside.is_file() else run_dir / "training.json")
    losses = [found.get(f"validation_loss_{when}") for when in ("before", "after")]
    before, after = losses
    return Work(
        rows=found["num_rows"],
        steps=found["steps"],
        train_seconds=stages["student"]["seconds"],
        losses=None if before is None or after is None else (before, after),
        teacher=_teacher(run_dir, stages, summary),
    )


def _teacher(run_dir: Path, stages: Mapping[str, StageRecord], summary: Summary) -> TeacherWork | None:
    name = next((name for name in TEACHER_STAGES if name in stages), None)
    if name is None:
        return None
    answers = tokens = 0
    for row in read_jsonl(run_dir / stages[name]["at"]):
        answers, tokens = answers + 1, tokens + row["num_tokens"]
    teacher = summary.models.get("teacher")
    speed = teacher.tokens_per_s if teacher else None
    paid = summary.spending.stages.get(name) if summary.spending else None
    return TeacherWork(
        answers=answers,
        tokens=tokens,
        seconds=stages[name]["seconds"],
        seconds_alone=tokens / speed if speed else None,
        cost=paid.cost if paid else None,
    )
