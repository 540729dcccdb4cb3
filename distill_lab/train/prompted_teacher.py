"""A teacher that reads other prompts than the student: the student's packed batch -> what it says of the same answers.

    teacher = PromptedTeacher(live_teacher(...), tokens_per_batch=8192)
    teacher.read(rows, "0")                          pairs: the row as the student reads it, and as the teacher does
    teacher.signal(batch).at(slice(0, 220))          fp32 logits [220, V]

The two rows of a pair have the same trained tokens; only what is before them differs, such as a system prompt that the
student has to do without. So the teacher's loss positions are the student's, in another place of another batch.

Shapes: N loss positions, T the teacher's hidden size, V ids that both models have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from distill_lab.train.objectives import LossBatch
from distill_lab.train.packing import Row, collate
from distill_lab.train.teachers import HeadSignal, LiveTeacher


class PromptedTeacher:
    """A `teachers.Teacher` with prompts that only it reads."""

    def __init__(self, live: LiveTeacher, *, tokens_per_batch: int) -> None:
        """tokens_per_batch: about how many tokens, padding counted, the teacher reads at once."""
        self.live, self._tokens_per_batch = live, tokens_per_batch
        self._rows: dict[bytes, Row] = {}

    def read(self, rows: Sequence[tuple[Row, Row]], name: str) -> None:
        """The rows that batches will have from now on, as the student and as the teacher reads them."""
        self._rows = {student.id: teacher for student, teacher in rows}

    def prepare(self, *, flat: bool) -> None:
        """Nothing: the teacher's batches have one row per bin, whatever the student's have."""

    def rows_stay_apart(self) -> bool:
        """They are never in one bin."""
        return True

    @torch.no_grad()
    def signal(self, batch: LossBatch) -> HeadSignal:
        """The teacher's passes over its rows for the student's."""
        device = batch.labels_N.device
        rows = [self._rows[id] for id in batch.row_ids_R]
        parts = [self.live.hidden(collate([[row] for row in part]).to(device)) for part in self._parts(rows)]
        head = self.live.head
        none_0T = torch.zeros(0, head.linear.in_features, device=head.linear.weight.device)
        hidden_NT = torch.cat(parts) if parts else none_0T
        assert len(hidden_NT) == len(batch.labels_N), "student and teacher read different answers"
        return HeadSignal(hidden_NT, head, self.live.num_ids, device)

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """The rows in their order, as many at once as fit."""
        part: list[Row] = []
        longest = 0
        for row in rows:
            longest = max(longest, len(row))
            if part and longest * (len(part) + 1) > self._tokens_per_batch:
                yield part
                part, longest = [], len(row)
            part.append(row)
        if part:
            yield part
