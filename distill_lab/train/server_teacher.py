"""A teacher on a server: the rows of a round -> their scores, requested once and kept -> what the teacher says of a batch.

    teacher = ServerTeacher(server, num_ids=151_936, work=Path("student.work"))
    teacher.read(rows, "0")                          all texts of a round at once, but those in scores-0.jsonl
    teacher.signal(batch).at(slice(0, 220))          Scored

Shapes: N loss positions, K ids that the server names, B = K + 1 with a bucket for all others.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zipfile
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill_lab.errors import UserError
from distill_lab.files.jsonl import JsonlAppender
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
        self._scores = _kept(path)
        missing = [pair for pair in rows if _key(pair) not in self._scores]
        texts = [[*row.input_ids.tolist(), int(row.target[-1])] for _, row in missing]
        with JsonlAppender(path) as file, closing(self.server.each(texts)) as arriving:
            for number, scores in arriving:
                found = self._arrays(missing[number][1], scores)
                # At once: whatever ends this, no text is paid for twice.
                file.append([_line(_key(missing[number]), found)])
                self._scores[_key(missing[number])] = found
        self._scores = {pair[0].id: self._scores[_key(pair)] for pair in rows}

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


def _key(pair: tuple[Row, Row]) -> bytes:
    return pair[0].id + pair[1].id


def _line(key: bytes, scores: _Scores) -> dict[str, str]:
    """A text's scores as a row of a file; the zip file in it knows if it is damaged."""
    buffer = io.BytesIO()
    np.savez(buffer, key=np.frombuffer(key, np.uint8), **{field: getattr(scores, field) for field in FIELDS})
    return {"scores": base64.b64encode(buffer.getvalue()).decode()}


def _kept(path: Path) -> dict[bytes, _Scores]:
    """The scores in a file by their text, without damaged lines, whose texts are scored again."""
    found: dict[bytes, _Scores] = {}
    with suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            try:
                with np.load(io.BytesIO(base64.b64decode(json.loads(line)["scores"], validate=True))) as parts:
                    found[parts["key"].tobytes()] = _Scores(*(parts[field] for field in FIELDS))
            except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError):
                continue
    return found


FIELDS = ("log_p_N", "ids_NK", "log_p_NB")
