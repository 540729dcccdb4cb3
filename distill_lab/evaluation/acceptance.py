"""How many tokens of a draft a target accepts in speculative decoding: rows of the target's own answers -> rates, lengths.

    sampled = compare_rows(target, {"draft": draft}, rows)          # answers that the target sampled at temperature 1
    greedy = compare_rows(target, {"draft": draft}, greedy_rows)    # its greedy answers
    acceptance(sampled["draft"], greedy["draft"]).sampled.rate

Shapes: N loss positions of a row, C of a chunk, V ids that both models have.

A draft's token x is accepted with probability min(1, p(x) / q(x)), p the target and q the draft, and a rejected one is
replaced so that the text is the target's (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding", arXiv 2211.17192, section 2). So a position accepts with probability a = sum over V of min(p, q). That i drafted
tokens in a row are accepted is the sum over texts of the product of min(p, q), which is the mean of the product of
min(1, q(x) / p(x)) over texts x of the target: one pass of each model over the target's own answers gives every length.
Greedy decoding accepts a token if it is the target's most likely one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distill_lab import activity
from distill_lab.evaluation.draft_figures import MAX_DRAFTED, Acceptance, Rate
from distill_lab.evaluation.intervals import TAIL, Interval
from distill_lab.train.objectives._chunked_head import CHUNK_ELEMENTS, MAX_CHUNK, MIN_CHUNK
from distill_lab.train.packing import Row, collate
from distill_lab.train.teachers import LiveTeacher


@dataclass(frozen=True, slots=True, eq=False)
class RowAcceptance:
    """One answer of the target, position by position; arrays of [N]."""

    accepted_N: np.ndarray
    """Probability that a drafted token is accepted here at temperature 1."""
    kept_N: np.ndarray
    """min(1, q(x) / p(x)) for the token x at this place."""
    agrees_N: np.ndarray
    """bool; whether the draft's most likely token is the target's."""


@torch.no_grad()
def compare_rows(
    target: LiveTeacher, drafts: Mapping[str, LiveTeacher], rows: Sequence[Row]
) -> dict[str, list[RowAcceptance]]:
    """The target and each draft compared at the loss positions of each row. All must have the same `num_ids`, V."""
    assert {draft.num_ids for draft in drafts.values()} == {target.num_ids}, "models are compared on the same ids"
    size = max(MIN_CHUNK, min(MAX_CHUNK, CHUNK_ELEMENTS // target.num_ids))
    found: dict[str, list[RowAcceptance]] = {name: [] for name in drafts}
    for number, row in enumerate(rows):
        activity.report("comparing drafts with the target, answer", number + 1, len(rows))
        batch = collate([[row]]).to(target.model.device)
        signals = {name: draft.signal(batch) for name, draft in drafts.items()}
        own = target.signal(batch)
        parts: dict[str, list[tuple[torch.Tensor, ...]]] = {name: [] for name in drafts}
        for start in range(0, len(batch.labels_N), size):
            part = slice(start, start + size)
            log_p_CV = own.at(part).log_softmax(-1)
            for name, signal in signals.items():
                parts[name].append(_compared(log_p_CV, signal.at(part).log_softmax(-1), batch.labels_N[part]))
        for name, pieces in parts.items():
            accepted, kept, agrees = (torch.cat(each).cpu().numpy() for each in zip(*pieces, strict=True))
            found[name].append(RowAcceptance(accepted, kept, agrees))
    return found


def _compared(log_p_CV: torch.Tensor, log_q_CV: torch.Tensor, labels_C: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The three figures of `RowAcceptance` at some positions; overwrites `log_q_CV`."""
    said_C1 = labels_C[:, None]
    kept_C = (log_q_CV.gather(1, said_C1) - log_p_CV.gather(1, said_C1)).clamp(max=0).exp()[:, 0]
    agrees_C = log_p_CV.argmax(1) == log_q_CV.argmax(1)
    return torch.minimum(log_p_CV, log_q_CV, out=log_q_CV).exp_().sum(1), kept_C, agrees_C


def acceptance(sampled: Sequence[RowAcceptance], greedy: Sequence[RowAcceptance]) -> Acceptance:
    """The figures of a draft from both kinds of answers; neither may be empty."""
    at_one = [row.accepted_N for row in sampled]
    agreeing = [row.agrees_N for row in greedy]
    lengths = range(1, MAX_DRAFTED + 1)
    return Acceptance(
        sampled=_rate(at_one, tuple(1 + expected_accepted([row.kept_N for row in sampled], size) for size in lengths)),
        greedy=_rate(agreeing, tuple(greedy_tokens_per_pass(agreeing, size) for size in lengths)),
    )


def difference(base: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[float, Interval | None]:
    """How much more often `other` is accepted than `base` on the same answers: the difference of the rates, in [-1, 1]."""
    return mean_of_rows([new - old for old, new in zip(_numbers(base), _numbers(other), strict=True)])


def mean_of_rows(rows: Iterable[np.ndarray]) -> tuple[float, Interval | None]:
    """Mean over the values of all rows, and its 95% interval if rows are independent but the values of a row are not.

    The ratio of two sums over rows, of the values and of their number, linearized (Cochran 1977, Sampling Techniques,
    section 6.3), with Student's t. No interval from fewer than two rows.
    """
    from scipy.stats import t

    sums, counts = np.array([(row.sum(), len(row)) for row in rows], dtype=float).T
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return mean, None
    error = ((sums - mean * counts) / counts.mean()).std(ddof=1) / math.sqrt(len(sums))
    half = float(t.ppf(1 - TAIL, len(sums) - 1) * error)
    return mean, (mean - half, mean + half)


def expected_accepted(kept: Sequence[np.ndarray], drafted: int) -> float:
    """Mean number of drafted tokens that are accepted before the first rejection, over all places of the answers.

    kept: `RowAcceptance.kept_N`. At the end of an answer fewer tokens can follow than are drafted.
    """
    total, places = 0.0, 0
    for row_N in kept:
        product_N = np.ones(len(row_N))
        for step in range(min(drafted, len(row_N))):
            product_N = product_N[: len(row_N) - step] * row_N[step:]
            total += float(product_N.sum())
        places += len(row_N)
    return total / places


def greedy_tokens_per_pass(agrees: Sequence[np.ndarray], drafted: int) -> float:
    """Tokens of the answers over passes of the target, each pass played through: accepted ones, then the target's own."""
    tokens = passes = 0
    for row_N in agrees:
        place = 0
        while place < len(row_N):
            ahead = row_N[place : place + drafted]
            place += (len(ahead) if ahead.all() else int(ahead.argmin())) + 1
            passes += 1
        tokens += len(row_N)
    return tokens / passes


def best_drafted(tokens_per_pass: Sequence[float], cost: float) -> tuple[int, float]:
    """How many tokens to draft, and the speedup to expect of it. cost: seconds of a draft's token over a target's pass.

    speedup(g) = tokens per pass / (1 + g * cost), as if the target read g + 1 tokens as fast as one.
    """
    speedups = [tokens / (1 + number * cost) for number, tokens in enumerate(tokens_per_pass, 1)]
    best = max(range(len(speedups)), key=lambda index: speedups[index])
    return best + 1, speedups[best]


def _rate(rows: Sequence[np.ndarray], tokens_per_pass: tuple[float, ...]) -> Rate:
    rate, ci95 = mean_of_rows(_numbers(rows))
    if ci95 is not None:
        ci95 = max(ci95[0], 0.0), min(ci95[1], 1.0)
    return Rate(rate, ci95, tokens_per_pass, len(rows), sum(map(len, rows)))


def _numbers(rows: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [row.astype(float) for row in rows]
