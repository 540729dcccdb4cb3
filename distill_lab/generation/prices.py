"""What a server's answers cost: usage and prices -> money, before (estimate), while (budget) and after (spending).

    paid = spending([Path("completions.jsonl")], price)      counts the answers that this output paid for
    print(paid)                                              1,000 requests, 152,000 + 48,000 tokens: cost 0.0516
    budget = Budget(price, spent=0.02); budget.fits(usage)   never lets requests cost more than price.max_cost

Costs are in the currency of the prices. Answers from the cache cost nothing: an earlier run paid for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distill_lab.config import PriceConfig, SamplingConfig
from distill_lab.files.jsonl import whole_rows
from distill_lab.types import Completion, Prompt, Usage

BATCH_FACTOR = 0.5
"""What hosted servers charge for a request in a batch, as a fraction of the price."""
BYTES_PER_TOKEN = 4
"""Of English text, for estimates; other languages and code have fewer bytes per token."""
TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST = 16, 64
"""Upper bounds for what a chat template adds."""
PER = 1e6
"""Prices are for one million tokens."""


def cost(usage: Usage, price: PriceConfig) -> float:
    """The cost of a request; 0 without prices."""
    if price.input is None or price.output is None:
        return 0.0
    cached = price.input if price.cached is None else price.cached
    full = (usage.input_tokens - usage.cached_tokens) * price.input + usage.cached_tokens * cached
    return (full + usage.output_tokens * price.output) / PER * (BATCH_FACTOR if usage.batch else 1)


def upper_bound(prompt: Prompt, max_new_tokens: int, *, batch: bool) -> Usage:
    """The maximum that a request can use: a token has at least one byte."""
    tokens = num_bytes(prompt) + TOKENS_PER_MESSAGE * len(prompt.messages) + TOKENS_PER_REQUEST
    return Usage(tokens, max_new_tokens, batch=batch, estimated=True)


def estimate(read: int, completion: Completion) -> Usage:
    """The usage of an answer whose server does not report it, from the bytes of the prompt and of the answer."""
    written = len(completion.content.encode(errors="replace")) + len(
        (completion.thinking or "").encode(errors="replace")
    )
    return Usage(read // BYTES_PER_TOKEN, completion.num_tokens or written // BYTES_PER_TOKEN, estimated=True)


def num_bytes(prompt: Prompt) -> int:
    """The bytes of a prompt's texts."""
    return sum(len(str(message.get("content") or "").encode(errors="replace")) for message in prompt.messages)


@dataclass(frozen=True, slots=True)
class Spending:
    """Requests that were paid for."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    """Those of `input_tokens` that the server had in its prompt cache."""
    output_tokens: int = 0
    batched: int = 0
    """Requests in batches."""
    estimated: int = 0
    """Requests whose tokens the server did not report."""
    cost: float | None = None
    """None if the prices are unknown."""

    def plus(self, usage: Usage, price: PriceConfig) -> Spending:
        """With one more request."""
        return Spending(
            self.requests + 1,
            self.input_tokens + usage.input_tokens,
            self.cached_tokens + usage.cached_tokens,
            self.output_tokens + usage.output_tokens,
            self.batched + usage.batch,
            self.estimated + usage.estimated,
            (self.cost or 0.0) + cost(usage, price) if price.known else None,
        )

    def __add__(self, other: Spending) -> Spending:
        """Of both, at the same prices."""
        costs = [each.cost for each in (self, other) if each.cost is not None]
        return Spending(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.batched + other.batched,
            self.estimated + other.estimated,
            sum(costs) if costs else None,
        )

    def __str__(self) -> str:
        text = f"{self.requests:,} requests, {self.input_tokens:,} prompt and {self.output_tokens:,} answer tokens"
        if self.cached_tokens:
            text += f" ({self.cached_tokens:,} from the server's prompt cache)"
        if self.estimated:
            text += f", {self.estimated:,} requests estimated from the texts' lengths"
        if self.cost is None:
            return text
        half = ", at half the price in batches" if self.batched == self.requests and self.batched else ""
        return f"{text}: cost {money(self.cost)}{half}"


def money(amount: float) -> str:
    """An amount in the currency of the prices, with four digits after the point below 1."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.4f}"


def spending(outputs: Iterable[Path], price: PriceConfig) -> Spending:
    """What the answers in completions files cost; missing files and answers without usage count nothing."""
    total = Spending()
    for path in outputs:
        for row in whole_rows(path) if path.exists() else ():
            usage = Completion.from_json(row).usage
            total = total.plus(usage, price) if usage else total
    return total


class Budget:
    """Requests that may be sent without exceeding `price.max_cost`. spent: what was paid before.

    A request counts with its upper bound while it is under way, and with its cost when its answer is there.
    """

    def __init__(self, price: PriceConfig, *, spent: float = 0.0) -> None:
        self.price, self.spent, self.under_way = price, spent, 0.0

    def fits(self, bound: Usage) -> bool:
        """Whether a request with this upper bound may be sent now."""
        limit = self.price.max_cost
        return limit is None or self.spent + self.under_way + cost(bound, self.price) <= limit

    def send(self, bound: Usage) -> None:
        """Count a request that is sent."""
        self.under_way += cost(bound, self.price)

    def settle(self, bound: Usage, usage: Usage | None) -> None:
        """Count its answer instead; None: it failed."""
        self.under_way = max(0.0, self.under_way - cost(bound, self.price))
        self.spent += cost(usage, self.price) if usage else 0.0

    def stopped(self) -> str:
        """Why no request may be sent any more."""
        limit = self.price.max_cost or 0.0
        return (
            f"stopped before the next request could make the answers cost more than engine.price.max_cost {limit:g} (so far "
            f"{money(self.spent)}); all answers are kept: run the same command again with a higher --max-cost to continue"
        )


def announcement(prompts: Iterable[Prompt], sampling: SamplingConfig, price: PriceConfig, *, batch: bool) -> str:
    """What the requests will cost, between answers of no length and answers of the maximum length."""
    number = read = 0
    for prompt in prompts:
        number += sampling.num_samples
        read += sampling.num_samples * (num_bytes(prompt) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE)
    written = number * sampling.max_new_tokens
    low, high = (cost(Usage(read, tokens, batch=batch), price) for tokens in (0, written))
    text = (
        f"{number:,} requests, about {read:,} prompt tokens and at most {written:,} answer tokens: cost {money(low)} to "
        f"{money(high)}"
    )
    if batch:
        text += ", at half the price in batches"
    return text if price.max_cost is None else f"{text}; stops at {money(price.max_cost)}"
