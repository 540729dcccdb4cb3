"""What two tokenizers make of the same text: token ids of both -> chunks, which of them are the same token, and counts.

    comparison = Comparison(student_tokenizer, teacher_tokenizer, names=("teacher", "student"), ends=(2, 107))
    found = comparison.of(student_ids, teacher_ids)
    comparison.agreement(found.counts())

Shapes: N tokens of the student, M of the teacher, K chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill_lab.models.shared_tokens import shared_tokens
from distill_lab.models.token_bytes import token_bytes
from distill_lab.train import alignment
from distill_lab.train.agreement import Agreement

COUNTED = (
    "texts", "text_bytes", "compared_bytes", "student_tokens", "teacher_tokens", "same", "chunks", "parts", "teacher_parts"
)  # fmt: skip
REASONS = {
    alignment.OTHER_TEXT: "the teacher's chat template has other text here",
    alignment.TOO_MANY: f"in a chunk of more than {alignment.MAX_TOKENS} tokens",
}
"""Why a token of the student is not compared."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A text in both tokenizations."""

    chunk_N: np.ndarray
    """int64, by token of the student: its chunk in [0, K), not descending, or below 0 (`alignment.align`)."""
    chunk_M: np.ndarray
    """The same by token of the teacher."""
    same_K: np.ndarray
    """bool; whether the chunk is one token, the same, for both."""
    text_bytes: int
    compared_bytes: int

    def counts(self) -> Counter[str]:
        """What `Comparison.agreement` adds up: COUNTED, and the student's tokens that are not compared, by reason."""
        same, parts = int(self.same_K.sum()), int((self.chunk_N >= 0).sum())
        return Counter(
            texts=1, text_bytes=self.text_bytes, compared_bytes=self.compared_bytes,
            student_tokens=len(self.chunk_N), teacher_tokens=len(self.chunk_M),
            same=same, chunks=len(self.same_K) - same, parts=parts - same,
            teacher_parts=int((self.chunk_M >= 0).sum()) - same,
        ) + Counter({reason: int((self.chunk_N == code).sum()) for code, reason in REASONS.items()})  # fmt: skip


class Comparison:
    """Two tokenizers."""

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        *,
        names: tuple[str, str],
        ends: tuple[int, int] | None = None,
    ) -> None:
        """names: of the models, teacher and student. ends: the ids of student and teacher that end a turn."""
        self.names, self.ends = names, ends
        self.shared = shared_tokens(student, teacher, ends=ends)
        self._bytes = token_bytes(student), token_bytes(teacher)

    def of(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> Compared:
        """Compare a text. End tokens, if both tokenizations end with one, are the last chunk, whatever they are called."""
        ids = [student_ids, teacher_ids]
        ended = self.ends is not None and all(
            len(each) and each[-1] == end for each, end in zip(ids, self.ends, strict=True)
        )
        texts = [
            [names.get(id, b"") for id in (each[:-1] if ended else each).tolist()]
            for each, names in zip(ids, self._bytes, strict=True)
        ]
        found = alignment.align(*texts)
        chunks, number = [found.student_N, found.teacher_M], found.num_chunks
        sizes_N = np.array([len(each) for each in texts[0]], dtype=np.int64)
        if ended:
            chunks, number = [np.append(each, number) for each in chunks], number + 1
            sizes_N = np.append(sizes_N, 0)
        kept = [(each[chunk >= 0], chunk[chunk >= 0]) for each, chunk in zip(ids, chunks, strict=True)]
        single = [np.bincount(chunk, minlength=number) == 1 for _, chunk in kept]
        # The last token of each chunk; of a chunk of one token, that one.
        last = [each[np.searchsorted(chunk, np.arange(number), side="right") - 1] for each, chunk in kept]
        same_K = single[0] & single[1] & (self.shared.teacher_of_V[last[0]] == last[1])
        return Compared(chunks[0], chunks[1], same_K, int(sizes_N.sum()), int(sizes_N[chunks[0] >= 0].sum()))

    def agreement(self, counts: Mapping[str, int]) -> Agreement:
        """The figures of texts whose `Compared.counts` have been added up."""
        values = {name: counts.get(name, 0) for name in COUNTED}
        return Agreement(
            teacher=self.names[0],
            student=self.names[1],
            teacher_vocabulary=len(self._bytes[1]),
            student_vocabulary=len(self._bytes[0]),
            shared_tokens=len(self.shared),
            dropped={reason: counts[reason] for reason in REASONS.values() if counts.get(reason)},
            **values,
        )


def text_agreement(
    texts: Sequence[str],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    names: tuple[str, str],
) -> Agreement:
    """The figures of plain texts, without chat templates. names: of the models, teacher and student."""
    comparison, counts = Comparison(student, teacher, names=names), Counter[str]()
    for text in texts:
        ids = [tokenizer.encode(text, add_special_tokens=False) for tokenizer in (student, teacher)]
        counts += comparison.of(*(np.asarray(each, dtype=np.int64) for each in ids)).counts()
    return comparison.agreement(counts)
