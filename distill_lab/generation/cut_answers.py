"""Warnings about answers cut off at the token limit: fractions -> sentences.

    cut_warning("the teacher", 0.43)      -> "warning: the teacher: 43% of the answers were cut off ..."

A cut-off answer scores 0, whatever it was about to say. If there are many, the score measures the limit, not the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.types import Counts

CUT_LIMIT = 0.1
"""Above this fraction of cut-off answers, a score gets a warning and retention is not reported."""
CUT, TOO_LONG = "cut at the token limit", "longer than max_length"
"""Reasons for dropping rows: from a training set, and in training."""


def cut_warning(who: str, share: float) -> str:
    """The warning for a model with this fraction of cut-off answers; empty up to CUT_LIMIT."""
    if share <= CUT_LIMIT:
        return ""
    return (
        f"warning: {who}: {share:.0%} of the answers were cut off at the token limit and score 0; "
        "raise max_new_tokens, or let it think less"
    )


def cut_reason(shares: Mapping[str, float]) -> str | None:
    """Why retention is not reported, such as `teacher cut off in 43%`; None if neither was cut off often."""
    often = [f"{who} cut off in {shares[who]:.0%}" for who in ("teacher", "student") if shares.get(who, 0) > CUT_LIMIT]
    return ", ".join(often) or None


def dropped_warning(counts: Counts) -> str:
    """The warning for training rows dropped because they were cut off or too long; empty up to CUT_LIMIT of them."""
    cut, long = counts.dropped.get(CUT, 0), counts.dropped.get(TOO_LONG, 0)
    if cut + long <= CUT_LIMIT * counts.rows_in:
        return ""
    remedies = ["raise sampling.max_new_tokens"] if cut else []
    remedies += ["raise train.max_length"] if long else []
    return (
        f"warning: {(cut + long) / counts.rows_in:.0%} of the rows were dropped because they were cut off or too long, "
        f"and these are the hardest ones; {' and '.join(remedies)}"
    )
