"""How far two tokenizers agree on the training rows, in figures and as a table. No torch, no files.

for line in agreement_lines(found):
    print(line)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Agreement:
    """What of the trained text two tokenizers can be compared on: student_tokens == same + parts + sum(dropped.values())."""

    teacher: str
    student: str
    """Names of the models."""
    teacher_vocabulary: int
    student_vocabulary: int
    """Tokens that each has."""
    shared_tokens: int
    """Tokens that both have: the same bytes."""
    texts: int
    """Answers that are trained; a conversation may have several."""
    text_bytes: int
    """Of these answers, as the student writes them, without end tokens."""
    compared_bytes: int
    """Of the chunks."""
    student_tokens: int
    """Trained, end tokens included."""
    teacher_tokens: int
    """Of the same answers."""
    same: int
    """Chunks that are one token, the same, for both: whole distributions are compared there."""
    chunks: int
    """All others: their likelihoods are compared."""
    parts: int
    """Tokens of the student in these."""
    teacher_parts: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Tokens of the student that are not compared, by reason."""

    @property
    def compared(self) -> int:
        """Tokens of the student that are compared."""
        return self.same + self.parts

    @property
    def compared_share(self) -> float:
        """Of the student's trained tokens, in [0, 1]."""
        return self.compared / max(1, self.student_tokens)


def agreement_rows(found: Agreement) -> Iterator[tuple[str, str, str]]:
    """The table: what, how many, and what they are a share of or consist of."""
    yield (
        "tokens in both vocabularies",
        f"{found.shared_tokens:,}",
        f"{_share(found.shared_tokens, found.student_vocabulary)} of the student's {found.student_vocabulary:,}, "
        f"{_share(found.shared_tokens, found.teacher_vocabulary)} of the teacher's {found.teacher_vocabulary:,}",
    )
    yield (
        "trained tokens",
        f"{found.student_tokens:,}",
        f"the teacher reads {found.teacher_tokens:,} in the same {found.texts:,} answers",
    )
    yield (
        "the same token for both",
        f"{found.same:,}",
        f"{_share(found.same, found.student_tokens)} of the trained tokens",
    )
    bytes_each = f", {found.compared_bytes / max(1, found.same + found.chunks):.1f} bytes a chunk over all"
    means = ""
    if found.chunks:
        means = (
            f", on average {found.parts / found.chunks:.1f} of the student and "
            f"{found.teacher_parts / found.chunks:.1f} of the teacher"
        )
    yield (
        "chunks of several tokens",
        f"{found.chunks:,}",
        f"{_share(found.parts, found.student_tokens)} of the trained tokens{means}{bytes_each}",
    )
    yield (
        "bytes compared",
        f"{found.compared_bytes:,}",
        f"{_share(found.compared_bytes, found.text_bytes)} of the answers' {found.text_bytes:,}",
    )
    for reason, number in found.dropped.items():
        if number:
            yield (
                "not compared",
                f"{number:,}",
                f"{_share(number, found.student_tokens)} of the trained tokens: {reason}",
            )


def agreement_lines(found: Agreement) -> list[str]:
    """The table as lines for a terminal."""
    rows = list(agreement_rows(found))
    first, second = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    head = f"{found.teacher} and {found.student} have different tokenizers; what can be compared:"
    return [head, *(f"  {name:<{first}}  {number:>{second}}  {what}" for name, number, what in rows)]


def agreement_sentence(found: Agreement) -> str:
    """The table in a sentence."""
    return (
        f"of {found.student_tokens:,} trained tokens {_share(found.same, found.student_tokens)} are the teacher's, "
        f"{_share(found.parts, found.student_tokens)} are in {found.chunks:,} chunks of several tokens, and "
        f"{_share(sum(found.dropped.values()), found.student_tokens)} are not compared"
    )


def _share(part: int, whole: int) -> str:
    """A percentage; below 10% with a decimal."""
    percent = 100 * part / max(1, whole)
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"
