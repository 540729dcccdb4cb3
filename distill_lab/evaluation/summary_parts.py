"""The parts of a summary that only some recipes have: costs, tokens, rounds, and what was generated and paid for.

    summary.cost.teacher.tokens        summary.tokens["level"]["3"].median        summary.iterations[0].num_rows

`Summary` (summary_file.py) holds them, and summary.json has them under the names of their fields. Labels, samples and drafts
have theirs where they are counted: `labels.LabelSummary`, `pass_at_k.BestOfK`, `draft_figures.DraftReport`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from distill_lab.generation.prices import Spending


@dataclass(frozen=True, slots=True)
class Cost:
    """What one answer takes, on average over prompts."""

    prompt_tokens: float
    """Tokens the model reads: system prompt, question, chat template."""
    completion_tokens: float
    """Tokens it writes, including thinking and the end token."""
    seconds: float | None = None
    """One answer at a time; None if it was not measured."""

    @property
    def tokens(self) -> float:
        """Tokens processed."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class CostRatio:
    """Teacher over student, except for `accuracy`; None: one of the two is unknown."""

    accuracy: float | None
    """Student over teacher."""
    tokens: float | None
    """Processed."""
    seconds: float | None


@dataclass(frozen=True, slots=True)
class CostComparison:
    """What an answer costs with the prompt and without it."""

    teacher: Cost
    student: Cost
    ratio: CostRatio

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """As summary.json has it, where the tokens processed are next to those they are the sum of."""
        costs = {"teacher": self.teacher, "student": self.student}
        rows = {name: dataclasses.asdict(cost) | {"tokens": cost.tokens} for name, cost in costs.items()}
        return {**rows, "ratio": dataclasses.asdict(self.ratio)}


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Tokens per solution, including thinking and the end token."""

    num: int
    """Solutions."""
    mean: float
    median: float
    shortest: int
    longest: int

    def __str__(self) -> str:
        return (
            f"{self.num:,} solutions, tokens: mean {self.mean:.1f}, median {self.median:g}, "
            f"{self.shortest} to {self.longest}"
        )


@dataclass(frozen=True, slots=True)
class TokenHistogram:
    """Tokens per answer of each model, in bins of one width."""

    width: int
    """Tokens."""
    shares: Mapping[str, tuple[float, ...]]
    """`shares[model][i]`: share of its answers that have [i width, (i + 1) width) tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """A round of verified distillation."""

    iteration: int
    """From 1."""
    teacher: str
    student: str
    """Its directory."""
    num_rows: int
    """Training rows."""
    mean_row_tokens: float
    validation_score: float | None
    """In [0, 1]; None if there is only one round."""
    validation_tokens: float | None
    """Mean tokens of the validation answers."""


@dataclass(frozen=True, slots=True)
class Generated:
    """What a stage generated."""

    answers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Paid:
    """What servers were paid."""

    stages: Mapping[str, Spending]
    """By stage."""
    total: Spending
