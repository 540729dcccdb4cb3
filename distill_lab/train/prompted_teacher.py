"""A teacher that reads other prompts than the student: the student's packed batch -> what it says of the same answers.

    teacher = PromptedTeacher(live_teacher(...), tokens_per_batch=8192)
    teacher.read(rows, "0")                          pairs: the row as the student reads it, and as the teacher does
    teacher.signal(batch).at(slice(0, 220))          fp32 logits [220, V]

The two rows of a pair have the same trained tokens; only what is before them differs, such as a system prompt that the
student has to do without. So the teacher's loss positions are the student's, in another place of another batch. What all of
its rows begin with, the system prompt, is computed once and kept as keys and values, if the architecture gives the same
hidden states that way; this is tried on a row, not looked up.

Shapes: B rows of a pass, W its width, N loss positions, T the teacher's hidden size, V ids that both models have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import Cache

from distill_lab.train.loss_module import TOLERANCE, embedding_weight
from distill_lab.train.objectives import LossBatch
from distill_lab.train.packing import Row, collate
from distill_lab.train.teachers import HeadSignal, LiveTeacher

MIN_SHARED = 32
"""Tokens that all rows must begin with for keys and values to be kept."""
MAX_CONTEXT = 8
"""A pass has at most this many times `tokens_per_batch` tokens, those of the kept beginning counted for each row."""


class PromptedTeacher:
    """A `teachers.Teacher` with prompts that only it reads."""

    def __init__(self, live: LiveTeacher, *, tokens_per_batch: int) -> None:
        """tokens_per_batch: about how many tokens, padding counted, the teacher computes at once."""
        self.live, self._tokens_per_batch = live, tokens_per_batch
        self._rows: dict[bytes, Row] = {}
        self._shared: list[int] = []
        """What all rows begin with, if its keys and values are kept."""
        self._cache: Cache | None = None
        self._can_keep: bool | None = None
        """Whether kept keys and values give the same hidden states; None: not tried yet."""

    def read(self, rows: Sequence[tuple[Row, Row]], name: str) -> None:
        """The rows that batches will have from now on, as the student and as the teacher reads them."""
        self._rows = {student.id: teacher for student, teacher in rows}
        teachers = list(self._rows.values())
        shared = _shared_beginning(teachers)
        if len(shared) < MIN_SHARED or self._can_keep is False:
            shared = []
        if shared != self._shared:
            self._shared, self._cache = shared, None
        if self._shared and self._can_keep is None:
            kept_NT, alone_NT = self._after_shared(teachers[:1]), self._alone(teachers[:1])
            tolerance = TOLERANCE[alone_NT.dtype if alone_NT.dtype in TOLERANCE else torch.float32]
            self._can_keep = bool((kept_NT - alone_NT).float().norm() <= tolerance * alone_NT.float().norm())
            if not self._can_keep:
                self._shared, self._cache = [], None

    def prepare(self, *, flat: bool) -> None:
        """Nothing: the teacher's batches have one row per bin, whatever the student's have."""

    def rows_stay_apart(self) -> bool:
        """They are never in one bin."""
        return True

    @torch.no_grad()
    def signal(self, batch: LossBatch) -> HeadSignal:
        """The teacher's passes over its rows for the student's."""
        rows = [self._rows[id] for id in batch.row_ids_R]
        compute = self._after_shared if self._shared else self._alone
        head = self.live.head
        none_0T = torch.zeros(0, head.linear.in_features, device=head.linear.weight.device)
        hidden_NT = torch.cat([compute(part) for part in self._parts(rows)]) if rows else none_0T
        assert len(hidden_NT) == len(batch.labels_N), "student and teacher read different answers"
        return HeadSignal(hidden_NT, head, self.live.num_ids, batch.labels_N.device)

    def _alone(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states at the loss positions of whole rows, [N, T]."""
        return self.live.hidden(collate([[row] for row in rows]).to(self._device()))

    @torch.no_grad()
    def _after_shared(self, rows: Sequence[Row]) -> torch.Tensor:
        """As `_alone`, from the keys and values of what all rows begin with."""
        start, device = len(self._shared), self._device()
        ends = [Row(row.input_ids[start:], row.target[start:], row.loss_mask[start:]) for row in rows]
        batch = collate([[row] for row in ends]).to(device)
        with torch.autocast(device.type, enabled=False):
            kept = self._cache
            if kept is None:
                shared = torch.tensor([self._shared], device=device)
                kept = self._cache = self.live.decoder(input_ids=shared, use_cache=True).past_key_values
            cache = copy.deepcopy(kept)  # a pass appends to it
            cache.batch_repeat_interleave(len(rows))
            outputs = self.live.decoder(
                input_ids=batch.input_ids_BW,
                position_ids=batch.position_ids_BW + start,
                past_key_values=cache,
                use_cache=True,
            )
        return outputs.last_hidden_state.flatten(0, 1).index_select(0, batch.loss_positions_N)

    def _device(self) -> torch.device:
        return embedding_weight(self.live.decoder).device

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """The rows in their order, as many at once as fit."""
        part: list[Row] = []
        longest, shared = 0, len(self._shared)
        for row in rows:
            longest = max(longest, len(row) - shared)
            number = len(part) + 1
            too_wide = longest * number > self._tokens_per_batch
            too_long = (longest + shared) * number > MAX_CONTEXT * self._tokens_per_batch
            if part and (too_wide or too_long):
                yield part
                part, longest = [], len(row) - shared
            part.append(row)
        if part:
            yield part


def _shared_beginning(rows: Sequence[Row]) -> list[int]:
    """The tokens that all rows begin with, before the first one that predicts a trained token."""
    size = min((int(np.flatnonzero(row.loss_mask)[0]) for row in rows), default=0)
    for row in rows[1:]:
        differs = np.flatnonzero(row.input_ids[:size] != rows[0].input_ids[:size])
        size = int(differs[0]) if len(differs) else size
    return rows[0].input_ids[:size].tolist() if rows else []
