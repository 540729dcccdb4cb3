"""What drafts are worth to a target, as figures: acceptance, expected lengths, wall time and vLLM's command line.

    for line in report.lines(): print(line)

`draft_proof.measure_drafts` takes them; summary.json and draft.json hold them. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from distill_lab.evaluation.goals import Figure
from distill_lab.evaluation.intervals import Interval
from distill_lab.types import Counts, JsonObject

MAX_DRAFTED = 8
"""Drafted tokens per pass of the target: 1 to this many are judged."""
BASE, DRAFT = "base", "draft"
SAMPLED, GREEDY = "sampled", "greedy"
TITLES = {BASE: "base draft", DRAFT: "draft"}


@dataclass(frozen=True, slots=True)
class Rate:
    """How often one way of decoding accepts a drafted token."""

    rate: float
    """Mean over all tokens, in [0, 1]."""
    ci95: Interval | None
    """Student's t over the answers, whose tokens are not independent; None from fewer than two."""
    tokens_per_pass: tuple[float, ...]
    """Expected tokens from one pass of the target with 1, 2, ... MAX_DRAFTED drafted tokens, its own one included."""
    num_answers: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a draft is worth to a target."""

    sampled: Rate
    """At temperature 1."""
    greedy: Rate


@dataclass(frozen=True, slots=True)
class DraftFigures:
    """One draft's figures."""

    model: str
    acceptance: Acceptance
    num_drafted: int
    """Tokens to draft per pass of the target, by the greedy acceptance and both models' seconds per token here."""
    expected_speedup: float
    """What that many should gain, if the target read them as fast as one token."""
    speedup: Figure | None
    """Measured: seconds of the target alone over seconds with the draft. None: not measured."""
    same_answers: int | None
    """Timed answers that are the target's own, token for token."""


@dataclass(frozen=True, slots=True)
class DraftReport:
    """The drafts beside each other."""

    target: str
    answers: Mapping[str, Counts]
    """By SAMPLED and GREEDY: the target's answers, and those that could not be compared, by reason."""
    drafts: Mapping[str, DraftFigures]
    """By BASE and DRAFT; BASE may be missing."""
    gain_sampled: tuple[float, Interval | None] | None
    """Acceptance of the draft minus that of the base draft at temperature 1, in [-1, 1], on the same answers."""
    gain_greedy: tuple[float, Interval | None] | None
    num_timed: int
    """Prompts that wall time was taken on; 0: none."""
    target_tokens_per_s: float | None
    """Of the target alone."""
    no_time: str
    """Why no wall time was taken; empty if it was."""

    @property
    def num_answers(self) -> int:
        """Answers of the target behind the greedy rates."""
        return next(iter(self.drafts.values())).acceptance.greedy.num_answers

    def sentence(self) -> str:
        """What was reached, without a full stop."""
        rates = [f"{found.acceptance.sampled.rate:.1%}" for found in self.drafts.values()]
        return f"The target accepts {' -> '.join(rates)} of the draft's tokens at temperature 1"

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report for a terminal, at most 80 characters wide."""
        for name, found in self.drafts.items():
            yield f"{TITLES[name]}: {found.model}"
            yield from _rate_lines("temperature 1", found.acceptance.sampled)
            yield from _rate_lines("greedy", found.acceptance.greedy)
            if found.speedup is not None:
                ratio = _with_interval(found.speedup.value or 0.0, found.speedup.ci95, "{:.2f}x")
                yield f"  wall time      {ratio} as fast, {found.num_drafted} tokens drafted"
                yield f"    {found.same_answers} of {self.num_timed} answers are the target's own, token for token"
        for title, gain in (("temperature 1", self.gain_sampled), ("greedy", self.gain_greedy)):
            if gain is not None:
                value, ci95 = 100 * gain[0], gain[1] and (100 * gain[1][0], 100 * gain[1][1])
                yield f"gain over the base draft, {title}: {_with_interval(value, ci95, '{:+.1f}')} points"
        for kind, counts in self.answers.items():
            if counts.dropped:
                yield f"{kind} answers of the target: {counts}"
        if self.no_time:
            yield f"wall time not measured: {self.no_time}"
        yield "serve both with vLLM:"
        yield f"  {self.command()}"

    def command(self) -> str:
        """How vLLM serves the target with the draft."""
        found = self.drafts.get(DRAFT) or self.drafts[BASE]
        draft = str(Path(found.model).absolute()) if Path(found.model).exists() else found.model
        settings = {"model": draft, "num_speculative_tokens": found.num_drafted, "method": "draft_model"}
        return f"vllm serve {self.target} --speculative-config '{json.dumps(settings)}'"


def _rate_lines(title: str, rate: Rate) -> Iterator[str]:
    share = _with_interval(100 * rate.rate, rate.ci95 and (100 * rate.ci95[0], 100 * rate.ci95[1]), "{:.1f}%")
    yield f"  {title:<15}{share} of {rate.num_tokens:,} tokens accepted"
    lengths = " ".join(f"{tokens:.2f}" for tokens in rate.tokens_per_pass)
    yield f"    tokens per pass, 1 to {len(rate.tokens_per_pass)} drafted: {lengths}"


def _with_interval(value: float, ci95: Interval | None, form: str) -> str:
    shown = form.format(value)
    return f"{shown} [{form.format(ci95[0])} to {form.format(ci95[1])}]" if ci95 else shown
