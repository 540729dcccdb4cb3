"""Answers that ended at the token limit, and what may no longer be said where they are many: shares -> sentences.

    cut_warning("the teacher", 0.43)      -> "the teacher: 43% of its answers were cut ..."

A cut answer scores 0 whatever it was about to say. Where many are, a score measures the limit and not the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.types import Counts

CUT_LIMIT = 0.1
"""Above this share of cut answers a score is warned of, and nothing is claimed of how much of the teacher's is kept."""
CUT, TOO_LONG = "cut at the token limit", "longer than max_length"
"""Reasons for which rows are dropped: a training set's, and training's."""


def cut_warning(who: str, share: float) -> str:
    """The warning for a model of which this share of answers was cut; empty up to CUT_LIMIT."""
    if share <= CUT_LIMIT:
        return ""
    return (
        f"warning: {who}: {share:.0%} of the answers were cut at the token limit and score 0; "
        "raise max_new_tokens, or let it think less"
    )


def cut_reason(shares: Mapping[str, float]) -> str | None:
    """Why retention is not claimed, as in `teacher cut in 43%`; None where neither teacher nor student was cut often."""
    often = [f"{who} cut in {shares[who]:.0%}" for who in ("teacher", "student") if shares.get(who, 0.0) > CUT_LIMIT]
    return ", ".join(often) or None


def dropped_warning(counts: Counts) -> str:
    """The warning for training rows left out because they were cut or too long; empty up to CUT_LIMIT of them."""
    cut, long = counts.dropped.get(CUT, 0), counts.dropped.get(TOO_LONG, 0)
    if cut + long <= CUT_LIMIT * counts.rows_in:
        return ""
    remedies = ["raise sampling.max_new_tokens"] if cut else []
    remedies += ["raise train.max_length"] if long else []
    return (
        f"warning: {(cut + long) / counts.rows_in:.0%} of the rows are left out because they were cut or are too long, "
        f"and those are the hardest ones; {' and '.join(remedies)}"
    )
