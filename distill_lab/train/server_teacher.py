"""A teacher on a server: the rows of a round -> their scores, requested once and kept -> what the teacher says of a batch.

    teacher = ServerTeacher(server, num_ids=151_936, work=Path("student.work"))
    teacher.read(rows, "0")                          all texts of a round at once, or from scores-0.npz
    teacher.signal(batch).at(slice(0, 220))          Scored

Shapes: N loss positions, K ids that the server names, B = K + 1 with a bucket for all others.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill_lab.errors import UserError
from distill_lab.files.jsonl import atomic_path
from distill_lab.train.objectives import LossBatch, Scored, TopK
from distill_lab.train.objectives._divergence import TINY
from distill_lab.train.packing import Row
from distill_lab.train.rollout_file import SCORES
from distill_lab.train.scoring_server import ScoringServer, TokenScores


@dataclass(frozen=True)
class ScoredSignal:
    """Scores at N positions."""

    scored: Scored
    num_ids: int

    def at(self, part: slice) -> Scored:
        """Those of some positions."""
        return Scored(self.scored.log_p_C[part], self.scored.top.at(part))


@dataclass(frozen=True)
class _Scores:
    """Of one row; numpy arrays."""

    log_p_N: np.ndarray
    ids_NK: np.ndarray
    log_p_NB: np.ndarray


class ServerTeacher:
    """A `teachers.Teacher` that reads rows before they are in batches."""

    def __init__(self, server: ScoringServer, *, num_ids: int, work: Path) -> None:
        """num_ids: rows of the student's head. work: the folder in which scores are kept."""
        self.server, self.num_ids, self.work = server, num_ids, work
        self._scores: dict[bytes, _Scores] = {}

    def read(self, rows: Sequence[tuple[Row, Row]], name: str) -> None:
        """The rows that batches will have from now on, as the student and as the teacher reads them; name: of the round."""
        path = self.work / SCORES.replace("*", name)
        found = self._kept(path, rows)
        if found is None:
            texts = [[*row.input_ids.tolist(), int(row.target[-1])] for _, row in rows]
            answers = self.server.scores(texts)
            found = [self._arrays(row, scores) for (_, row), scores in zip(rows, answers, strict=True)]
            parts = {f"{field}{number}": getattr(each, field) for number, each in enumerate(found) for field in FIELDS}
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, rows=_ids(rows), **parts)
        self._scores = {student.id: each for (student, _), each in zip(rows, found, strict=True)}

    def prepare(self, *, flat: bool) -> None:
        """Nothing: the server reads each row alone."""

    def rows_stay_apart(self) -> bool:
        """They are never in one text."""
        return True

    def signal(self, batch: LossBatch) -> ScoredSignal:
        """What the server has said of the rows of `batch`."""
        device, rows = batch.labels_N.device, [self._scores[id] for id in batch.row_ids_R]
        size = self.server.size
        log_p_N = np.concatenate([np.zeros(0, np.float32), *(row.log_p_N for row in rows)])
        ids_NK = np.concatenate([np.zeros((0, size), np.int64), *(row.ids_NK for row in rows)])
        log_p_NB = np.concatenate([np.zeros((0, size + 1), np.float32), *(row.log_p_NB for row in rows)])
        assert len(log_p_N) == len(batch.labels_N), "student and teacher read different answers"
        top = TopK(torch.from_numpy(ids_NK).to(device), torch.from_numpy(log_p_NB).to(device))
        return ScoredSignal(Scored(torch.from_numpy(log_p_N).to(device), top), self.num_ids)

    def _arrays(self, row: Row, scores: Sequence[TokenScores]) -> _Scores:
        """The scores at the loss positions of a row."""
        size = self.server.size
        places = np.flatnonzero(row.loss_mask).tolist()
        log_p, ids, top = [], [], []
        for place in places:
            found = scores[place].log_p
            best = sorted((id for id in found if id < self.num_ids), key=lambda id: -found[id])[:size]
            if len(best) < size:
                raise UserError(
                    f"{self.server.name} names only {len(best)} ids that the student has at a position of its answer; its "
                    "vocabulary is larger than the student's. Choose a smaller --teacher-top-k"
                )
            rest = 1.0 - math.fsum(math.exp(found[id]) for id in best)
            log_p.append(found[int(row.target[place])])
            ids.append(best)
            top.append([*(found[id] for id in best), math.log(max(rest, TINY))])
        return _Scores(np.asarray(log_p, np.float32), np.asarray(ids, np.int64), np.asarray(top, np.float32))

    def _kept(self, path: Path, rows: Sequence[tuple[Row, Row]]) -> list[_Scores] | None:
        """The scores of these rows as they were kept; None if there are none, or of other rows, or damaged."""
        try:
            with np.load(path) as file:
                if not np.array_equal(file["rows"], _ids(rows)):
                    return None
                return [_Scores(*(file[f"{field}{number}"] for field in FIELDS)) for number in range(len(rows))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


FIELDS = ("log_p_N", "ids_NK", "log_p_NB")


def _ids(rows: Sequence[tuple[Row, Row]]) -> np.ndarray:
    return np.frombuffer(b"".join(row.id for pair in rows for row in pair), dtype=np.uint8)
