"""What can be timed in a given number of seconds: models' paces + a budget -> how many prompts, tokens and rounds.

    plan = make_plan(paces, budget_s=300, num_prompts=64, max_tokens=512, rounds=3, latency_tokens=128)

The paces come from a short batch of each model, so a plan is an estimate, and one from above: no answer ends before the
limit in it, unless all of the short batch did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NUM_BATCHED = 64
"""Maximum number of prompts of a round in batches."""
NUM_SINGLE = 8
"""Maximum number of prompts of a round one at a time."""
MAX_TOKENS = 256
"""Answers are cut at so many tokens while they are timed: longer ones take longer and say no more of the pace."""
FEWEST_TOKENS, FEWEST_PROMPTS, FEWEST_SINGLE = 16, 8, 4
"""Rounds are left out before there are fewer; then, fewer there are all the same."""
BATCHED_SHARE, SINGLE_SHARE, LATENCY_SHARE = 0.4, 0.3, 0.3
"""Of the budget."""
MEMORY_BUDGET_S = 36.0
"""Seconds for the batch that shows a model's memory, if no budget is given."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model is, from a short answer and a short batch."""

    read_s: float
    """Seconds to read one prompt alone."""
    token_s: float
    """Seconds for each further token of one answer."""
    rows: int
    """Prompts of the short batch."""
    batch_read_s: float
    """Seconds to read them."""
    step_s: float
    """Seconds for one further token of each."""
    most_tokens: int | None = None
    """Tokens of its longest answer, where all ended by themselves."""

    def expected(self, max_tokens: int) -> int:
        """Tokens of an answer, at most."""
        return max_tokens if self.most_tokens is None else min(2 * self.most_tokens, max_tokens)

    def batch_s(self, num_prompts: int, max_tokens: int) -> float:
        """Seconds of a batch; a step with more rows takes longer, by their number at most."""
        share = num_prompts / self.rows
        return share * self.batch_read_s + self.expected(max_tokens) * self.step_s * max(share, 1.0)

    def alone_s(self, max_tokens: int) -> float:
        """Seconds of one answer."""
        return self.read_s + self.expected(max_tokens) * self.token_s


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed."""

    num_prompts: int
    max_tokens: int
    rounds: int
    num_single: int
    rounds_single: int
    single_s: float
    """Seconds for the answers one at a time, of all models together."""
    latency_s: float
    """Seconds for the latency answers of all models together."""
    seconds: float
    """What all of it takes, latency answers included, as estimated."""


def make_plan(
    paces: Sequence[Pace], *, budget_s: float, num_prompts: int, max_tokens: int, rounds: int, latency_tokens: int
) -> Plan:
    """The largest plan within `budget_s`, seconds for all models together; the smallest one without a budget."""
    number, tokens, times = min(num_prompts, NUM_BATCHED), min(max_tokens, MAX_TOKENS), rounds

    def batched_s() -> float:
        return times * sum(pace.batch_s(number, tokens) for pace in paces)

    while batched_s() > BATCHED_SHARE * budget_s:
        if number > 2 * FEWEST_PROMPTS:
            number //= 2
        elif tokens > 4 * FEWEST_TOKENS:
            tokens //= 2
        elif times > 1:
            times -= 1
        elif number > 1:
            number //= 2
        elif tokens > FEWEST_TOKENS:
            tokens = max(tokens // 2, FEWEST_TOKENS)
        else:
            break
    singles, times_single = min(number, NUM_SINGLE), rounds

    def single_s() -> float:
        return times_single * singles * sum(pace.alone_s(tokens) for pace in paces)

    while single_s() > SINGLE_SHARE * budget_s:
        if singles > FEWEST_SINGLE:
            singles //= 2
        elif times_single > 1:
            times_single -= 1
        elif singles > 1:
            singles //= 2
        else:
            break
    latency_s = max(LATENCY_SHARE * budget_s, 0.0)
    one_each_s = sum(pace.read_s + latency_tokens * pace.token_s for pace in paces)
    return Plan(
        num_prompts=number,
        max_tokens=tokens,
        rounds=times,
        num_single=singles,
        rounds_single=times_single,
        single_s=max(SINGLE_SHARE * budget_s, 0.0),
        latency_s=latency_s,
        seconds=batched_s() + single_s() + max(latency_s, one_each_s),
    )


def batch_within(pace: Pace, seconds: float, *, num_prompts: int, max_tokens: int) -> tuple[int, int]:
    """Prompts and tokens of one batch that takes at most `seconds`; at least one prompt and FEWEST_TOKENS."""
    number, tokens = num_prompts, min(max_tokens, MAX_TOKENS)
    while pace.batch_s(number, tokens) > seconds and (number > 1 or tokens > FEWEST_TOKENS):
        if tokens > FEWEST_TOKENS and (number <= FEWEST_PROMPTS or tokens > 4 * FEWEST_TOKENS):
            tokens = max(tokens // 2, FEWEST_TOKENS)
        else:
            number = max(number // 2, 1)
    return number, tokens
