"""A teacher with another tokenizer: the student's packed batch -> what the teacher says of the same text.

    teacher = aligned_teacher(ModelConfig(model="..."), pairing, tokens_per_batch=8192)
    teacher.signal(batch).parts(220)                 slices of the loss positions that divide no chunk
    teacher.signal(batch).at(slice(0, 216))          Chunks, with the teacher's fp32 logits at its tokens of these chunks

The teacher reads each row in its own tokens and its own chat template (`paired_rows.Pairing`), in passes of rows of about
the same length. As with other live teachers its logits exist for a part at a time only, when the objective walks the
student's.

Shapes: N loss positions of the student, D compared positions of the teacher, T its hidden size, S shared ids, U units:
chunks, or positions that are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distill_lab import activity
from distill_lab.config import ModelConfig
from distill_lab.models.loading import load_config, load_model, load_tokenizer
from distill_lab.models.names import base_of, is_adapter, resolve
from distill_lab.train.loss_module import decoder_and_head, embedding_weight
from distill_lab.train.objectives import Chunks, LossBatch
from distill_lab.train.objectives._chunked_head import CHUNK_ELEMENTS, MIN_CHUNK
from distill_lab.train.packing import Row, collate
from distill_lab.train.paired_rows import Pairing, RowPair
from distill_lab.train.teachers import HeadSignal, LiveTeacher

UNLIMITED = 1 << 30
"""Tokens that a teacher reads if its config does not say."""


@dataclass(frozen=True)
class AlignedSignal:
    """What the teacher says of N loss positions; its logits are made part by part."""

    head: HeadSignal
    """Of the D compared positions."""
    labels_D: np.ndarray
    chunk_N: np.ndarray
    """By loss position of the student: its chunk in [0, K), not descending, or -1."""
    chunk_D: np.ndarray
    same_K: np.ndarray
    shared: torch.Tensor
    """int64, [2, S], on the device of the objective."""

    @property
    def num_ids(self) -> None:
        """The student's whole head is used."""
        return None

    def parts(self, most: int) -> Sequence[slice]:
        """As `GroupedSignal`; nor has any part many more logits of the teacher than of the student."""
        compared_N = self.chunk_N >= 0
        starts_U = np.flatnonzero(~compared_N | (np.diff(self.chunk_N, prepend=-1) != 0))
        if not len(starts_U):
            return [slice(0, 0)]
        ends_U = np.append(starts_U[1:], len(self.chunk_N))
        # Teacher's tokens up to the end of each unit; one that is not compared has none.
        last_U = np.maximum.accumulate(np.where(compared_N[starts_U], self.chunk_N[starts_U], -1))
        theirs_U = np.searchsorted(self.chunk_D, last_U, side="right")
        most_theirs = max(CHUNK_ELEMENTS // self.head.num_ids, MIN_CHUNK)
        found: list[slice] = []
        unit, start, read = 0, 0, 0
        while unit < len(ends_U):
            stop = np.searchsorted(ends_U, start + most, side="right")
            stop = min(stop, np.searchsorted(theirs_U, read + most_theirs, side="right"))
            unit = max(unit + 1, int(stop))
            found.append(slice(start, int(ends_U[unit - 1])))
            start, read = int(ends_U[unit - 1]), int(theirs_U[unit - 1])
        return found

    def at(self, part: slice) -> Chunks:
        """The chunks of a part that `parts` made."""
        chunk_C = self.chunk_N[part]
        compared_C = chunk_C[chunk_C >= 0]
        first, end = (int(compared_C[0]), int(compared_C[-1]) + 1) if len(compared_C) else (0, 0)
        theirs = slice(*np.searchsorted(self.chunk_D, [first, end]).tolist())
        device = self.shared.device

        def moved(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        return Chunks(
            self.head.at(theirs),
            moved(self.labels_D[theirs]),
            moved(self.chunk_D[theirs] - first),
            moved(np.where(chunk_C >= 0, chunk_C - first, -1)),
            moved(self.same_K[first:end]),
            self.shared,
        )


class AlignedTeacher:
    """A `teachers.Teacher` that reads the rows in its own tokens."""

    def __init__(
        self, live: LiveTeacher, pairs: Mapping[bytes, RowPair], shared: np.ndarray, *, tokens_per_batch: int
    ) -> None:
        """pairs: by row of the student. shared: [2, S], ids of student and teacher for the same bytes. tokens_per_batch:
        about how many tokens, padding counted, the teacher computes at once."""
        self.live, self.pairs, self._tokens_per_batch = live, pairs, tokens_per_batch
        self._shared = torch.from_numpy(shared)

    def prepare(self, *, flat: bool) -> None:
        """Nothing: the teacher's batches have one row per bin, whatever the student's have."""

    def rows_stay_apart(self) -> bool:
        """They are never in one bin."""
        return True

    @torch.no_grad()
    def signal(self, batch: LossBatch) -> AlignedSignal:
        """The teacher's passes over its rows for the student's."""
        pairs = [self.pairs[id] for id in batch.row_ids_R]
        device = batch.labels_N.device
        if self._shared.device != device:
            self._shared = self._shared.to(device)
        chunks_N, chunks_D, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for pair in pairs:
            chunks_N.append(np.where(pair.chunk_N >= 0, pair.chunk_N + first, -1))
            chunks_D.append(pair.chunk_D + first)
            first += len(pair.same_K)
        chunk_N, rows = np.concatenate(chunks_N), [row for pair in pairs for row in pair.teacher]
        assert len(chunk_N) == len(batch.labels_N), "student and teacher read different answers"
        return AlignedSignal(
            head=HeadSignal(self._hidden(rows), self.live.head, self.live.num_ids, device),
            labels_D=np.concatenate(
                [np.zeros(0, np.int64), *(row.target[row.loss_mask].astype(np.int64) for row in rows)]
            ),
            chunk_N=chunk_N,
            chunk_D=np.concatenate(chunks_D),
            same_K=np.concatenate([np.zeros(0, bool), *(pair.same_K for pair in pairs)]),
            shared=self._shared,
        )

    def _hidden(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states at the loss positions of the rows, in their order, [D, T]. Rows of like length are read together."""
        linear = self.live.head.linear
        found: list[torch.Tensor] = [torch.zeros(0, linear.in_features, device=linear.weight.device)] * len(rows)
        device = embedding_weight(self.live.decoder).device
        longest_first = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        while longest_first:
            number = max(1, self._tokens_per_batch // len(rows[longest_first[0]]))
            part, longest_first = longest_first[:number], longest_first[number:]
            together = collate([[rows[index]] for index in part]).to(device)
            sizes = [int(rows[index].loss_mask.sum()) for index in part]
            for index, hidden_DT in zip(part, self.live.hidden(together).split(sizes), strict=True):
                found[index] = hidden_DT
        return torch.cat(found) if found else torch.zeros(0, linear.in_features, device=linear.weight.device)


def aligned_teacher(config: ModelConfig, pairing: Pairing, *, tokens_per_batch: int) -> AlignedTeacher:
    """Load the teacher of rows that have been paired."""
    with activity.doing(f"loading the teacher {config.model}"):
        model, _ = load_model(config)
    live = LiveTeacher(model, decoder_and_head(model)[1].linear.out_features)
    shared = pairing.comparison.shared
    pairs = np.stack([shared.student_S, shared.teacher_S])
    return AlignedTeacher(live, pairing.pairs, pairs, tokens_per_batch=tokens_per_batch)


def make_pairing(
    teacher: ModelConfig, student: PreTrainedTokenizerBase, *, student_name: str, thinking: bool | None
) -> Pairing:
    """The pairing of a training's rows; reads the teacher's tokenizer and config, not its weights. Raises UserError."""
    base = base_of(teacher) if is_adapter(resolve(teacher.model)) else teacher
    config = load_config(base).get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or UNLIMITED)
    return Pairing(
        student, load_tokenizer(teacher), thinking=thinking, names=(teacher.model, student_name), max_length=limit
    )
