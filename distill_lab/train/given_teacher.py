"""Teachers that are not here: what another tool wrote of their distributions, as caches -> the signal of a batch.

    teacher = given_teachers(config, student_rows=151_936, rows=rows)      # config.teacher_cache.folders
    teacher.signal(batch).at(slice(0, 220))                                # TopK, or SeveralTopK of several teachers

`given_logits.py` makes such caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.config import TrainConfig
from distill_lab.errors import UserError
from distill_lab.train.cached_teacher import CachedTeacher, TopKSignal
from distill_lab.train.objectives import LossBatch, SeveralTopK, Signal
from distill_lab.train.packing import Row
from distill_lab.train.teacher_cache import TeacherCache


@dataclass(frozen=True)
class SeveralSignal:
    """What several teachers say at N positions."""

    signals: tuple[TopKSignal, ...]
    num_ids: int

    def at(self, part: slice) -> SeveralTopK:
        """What they say at some positions."""
        return SeveralTopK(tuple(signal.top.at(part) for signal in self.signals))


class GivenTeachers:
    """Several caches of most likely ids, one for each teacher."""

    def __init__(self, teachers: Sequence[CachedTeacher]) -> None:
        self.teachers = teachers

    def prepare(self, *, flat: bool) -> None:
        """Nothing: no model reads the batch."""

    def rows_stay_apart(self) -> bool:
        """What was captured of a row does not depend on its neighbors."""
        return True

    def signal(self, batch: LossBatch) -> Signal:
        """Raises UserError for a row that is not in a cache."""
        signals = tuple(teacher.signal(batch) for teacher in self.teachers)
        assert all(isinstance(signal, TopKSignal) for signal in signals), "caches of most likely ids"
        return SeveralSignal(signals, min(teacher.num_ids for teacher in self.teachers))  # pyright: ignore[reportArgumentType]


def given_teachers(config: TrainConfig, *, student_rows: int, rows: Sequence[Row]) -> GivenTeachers:
    """Open the caches in `config.teacher_cache.folders`. Raises UserError for rows that are not in them."""
    teachers = []
    for folder in map(Path, config.teacher_cache.folders):
        cache = TeacherCache.open(folder.expanduser())
        if cache.identity.mode != "top_k":
            raise UserError(
                f"{folder}: a {cache.identity.mode} cache of {cache.identity.name}; train.teacher-cache.folders take caches "
                "of most likely ids that were made from files, others are read with --train.teacher.model"
            )
        if missing := cache.missing(rows):
            raise UserError(
                f"{folder}: {len(missing):,} of {len(rows):,} rows are not in this cache, the first of them "
                f"{missing[0].id.hex()} with {len(missing[0])} tokens; make it from the same rows, with the same student"
            )
        teachers.append(CachedTeacher(cache, student_rows))
    return GivenTeachers(teachers)


def given_inputs(config: TrainConfig) -> list[str]:
    """What a trained student depends on: what the caches were made from, wherever they are. Raises UserError."""
    return [TeacherCache.open(Path(folder).expanduser()).identity.digest() for folder in config.teacher_cache.folders]
