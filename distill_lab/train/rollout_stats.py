"""On-policy training in figures: its rounds, and what the student writes by itself before and after. No torch, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RoundStats:
    """A round's rollouts: rollouts == kept + sum(dropped.values())."""

    round: int
    """From 0."""
    rollouts: int
    kept: int
    tokens: int
    """Generated, of all rollouts."""
    truncated: int
    """Rollouts that were cut at the token limit. They are kept: every position is a lesson."""
    row_tokens: int
    """Of the rows that are trained on, prompts included."""
    seconds: float
    """Generating them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rollouts left out, by reason."""

    def __str__(self) -> str:
        dropped = "".join(f", {number} dropped: {reason}" for reason, number in self.dropped.items())
        cut = f", {self.truncated} of them cut at the token limit" if self.truncated else ""
        return f"{self.rollouts} rollouts{cut}, {self.tokens:,} tokens{dropped}"


@dataclass(frozen=True, slots=True)
class OwnText:
    """What a student writes by itself."""

    texts: int
    tokens: int
    """Of the texts, those that are trained."""
    truncated: int
    """Texts that were cut at the token limit."""
    teacher_nats: float
    """Mean of -log p of a token by the teacher: how surprised it is. Per token, as the next two."""
    student_nats: float
    """Mean of -log q of a token by the student, which estimates its entropy."""
    divergence: float
    """The objective's divergence from the teacher, with its temperature."""


@dataclass(frozen=True, slots=True)
class OnPolicyStats:
    """An on-policy training, as summary.json has it."""

    num_rounds: int
    rollouts: int
    tokens_generated: int
    truncated_share: float
    """Of the rollouts, cut at the token limit; in [0, 1]."""
    held_out: bool
    """Whether `before` and `after` are of prompts that were not trained on."""
    before: OwnText | None
    """None if no text could be scored, or if an interruption damaged the file with the figures."""
    after: OwnText | None
    rounds: tuple[RoundStats, ...]

    @classmethod
    def of(
        cls, rounds: Sequence[RoundStats], *, held_out: bool, before: OwnText | None, after: OwnText | None
    ) -> OnPolicyStats:
        """The figures of these rounds."""
        number = sum(each.rollouts for each in rounds)
        return cls(
            num_rounds=len(rounds),
            rollouts=number,
            tokens_generated=sum(each.tokens for each in rounds),
            truncated_share=sum(each.truncated for each in rounds) / max(1, number),
            held_out=held_out,
            before=before,
            after=after,
            rounds=tuple(rounds),
        )
