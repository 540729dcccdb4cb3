"""Training rows in two tokenizations: messages -> how student and teacher read them, and which tokens belong together.

    pairing = Pairing(student_tokenizer, teacher_tokenizer, thinking=False)
    data = read_paired_rows(path, student_tokenizer, pairing, max_length=1024, validation_fraction=0.05, seed=42)
    pairing.pairs[row.id]          RowPair
    pairing.agreement()            the table that is shown before training

The teacher reads the conversation in its own chat template. Compared are the answers: an answer of the student and the same
answer of the teacher are cut into chunks (`comparison.py`), and their end tokens are a chunk, whatever they are called.

Shapes: N loss positions of the student's row, D compared positions of the teacher's rows, K chunks, M tokens of an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill_lab.chat import encode_turns, inspect_template
from distill_lab.errors import NoData, UserError
from distill_lab.train.agreement import Agreement
from distill_lab.train.comparison import Compared, Comparison
from distill_lab.train.packing import Row
from distill_lab.train.rows import Rows, read_rows
from distill_lab.types import Message

REFUSED = "the teacher's chat template refuses it"
TOO_LONG = "longer than the teacher's context"
OTHER_TURNS = "the teacher's chat template has other turns"
NOTHING = "no token can be compared with the teacher"
"""Reasons for leaving a row out."""


@dataclass(frozen=True, slots=True, eq=False)
class RowPair:
    """A row of the student and the rows that the teacher reads for it."""

    teacher: tuple[Row, ...]
    """Their loss positions are the D compared ones."""
    chunk_N: np.ndarray
    """int32, by loss position of the student's row: its chunk in [0, K), not descending, or -1: not compared."""
    chunk_D: np.ndarray
    """int32, by loss position of the teacher's rows: its chunk."""
    same_K: np.ndarray
    """bool; whether the chunk is one token, the same, for both."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The tokens of a trained answer: a row, and the places of its loss positions."""

    row: Row
    places: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        return self.row.target[self.places]


class Pairing:
    """Pairs the rows of a training, one after the other, and keeps what they have in common."""

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        *,
        thinking: bool | None,
        names: tuple[str, str],
        max_length: int = 1 << 30,
    ) -> None:
        """names: of teacher and student. max_length: tokens that the teacher can read.

        Raises UserError for a chat template that is unfit for any row.
        """
        self.teacher, self.thinking, self.max_length = teacher, thinking, max_length
        self.ends = inspect_template(student).end_id, inspect_template(teacher).end_id
        self.comparison = Comparison(student, teacher, names=names, ends=self.ends)
        self.pairs: dict[bytes, RowPair] = {}
        self.first_refused = ""
        """The teacher's words for the first conversation that its template refuses."""
        self._counts: Counter[str] = Counter()

    def add(self, prompt: Sequence[Message], completion: Sequence[Message], rows: Sequence[Row]) -> str:
        """Pair the student's rows of a conversation; returns why they have to be left out, or an empty string."""
        try:
            encoded = encode_turns(self.teacher, prompt, completion, thinking=self.thinking)
        except UserError as error:
            self.first_refused = self.first_refused or str(error)
            return REFUSED
        if any(len(each.input_ids) > self.max_length for each in encoded):
            return TOO_LONG
        theirs = [answer for each in encoded for answer in _answers(Row.from_encoded(each), self.ends[1])]
        ours = [(row, list(_answers(row, self.ends[0]))) for row in rows]
        if sum(len(answers) for _, answers in ours) != len(theirs):
            return OTHER_TURNS
        pairs: dict[bytes, RowPair] = {}
        compared: list[Compared] = []
        for row, answers in ours:
            of_row, theirs = theirs[: len(answers)], theirs[len(answers) :]
            found = [self.comparison.of(our.ids, their.ids) for our, their in zip(answers, of_row, strict=True)]
            pairs[row.id] = _pair(of_row, found)
            compared += found
        if all(len(each.same_K) == 1 for each in compared):  # nothing but end tokens
            return NOTHING
        self.pairs |= pairs
        for each in compared:
            self._counts += each.counts()
        return ""

    def agreement(self) -> Agreement:
        """What the rows have in common so far."""
        return self.comparison.agreement(self._counts)


def _pair(theirs: Sequence[_Answer], compared: Sequence[Compared]) -> RowPair:
    """A row's answers, one after the other, with chunks numbered through."""
    chunks_N, chunks_D, number = [], [], 0
    rows: list[tuple[Row, list[np.ndarray]]] = []
    for their, found in zip(theirs, compared, strict=True):
        compared_M = found.chunk_M >= 0
        chunks_N.append(np.where(found.chunk_N >= 0, found.chunk_N + number, -1))
        chunks_D.append(found.chunk_M[compared_M] + number)
        number += len(found.same_K)
        if not rows or rows[-1][0] is not their.row:
            rows.append((their.row, []))
        rows[-1][1].append(their.places[compared_M])
    masked = [(row, np.concatenate(places)) for row, places in rows]
    return RowPair(
        tuple(_with_mask(row, places) for row, places in masked if len(places)),
        np.concatenate(chunks_N).astype(np.int32),
        np.concatenate(chunks_D).astype(np.int32),
        np.concatenate([found.same_K for found in compared]),
    )


def read_paired_rows(
    path: Path,
    student: PreTrainedTokenizerBase,
    pairing: Pairing,
    *,
    max_length: int,
    validation_fraction: float,
    seed: int,
) -> Rows:
    """As `read_rows`; rows that cannot be paired are dropped and counted, too. Raises NoData if none is left."""
    try:
        return read_rows(
            path,
            student,
            max_length=max_length,
            validation_fraction=validation_fraction,
            seed=seed,
            thinking=pairing.thinking,
            on_row=pairing.add,
        )
    except NoData as error:
        if not pairing.first_refused:
            raise
        raise NoData(f"{error}. What the teacher's chat template refuses first: {pairing.first_refused}") from None


def _answers(row: Row, end: int) -> Iterator[_Answer]:
    """The trained answers of a row; each ends with its template's end token, which is nowhere else in it."""
    places = np.flatnonzero(row.loss_mask)
    cuts = np.flatnonzero(row.target[places] == end) + 1
    for answer in np.split(places, cuts):
        if len(answer):
            yield _Answer(row, answer)


def _with_mask(row: Row, places: np.ndarray) -> Row:
    mask = np.zeros(len(row), dtype=bool)
    mask[places] = True
    return replace(row, loss_mask=mask)
