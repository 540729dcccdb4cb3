"""A person's ratings in words and as a part of a page: RatingSummary -> sentences and HTML.

ratings_section(summary.ratings, names=LABELS)                empty without ratings
mean_text(ratings.models["student"])              3.90 of 5 [3.52 to 4.21], 30 prompts
"""

from __future__ import annotations

from collections.abc import Mapping

from distill_lab.evaluation.ratings import Agreement, ModelRating, RatingGain, RatingSummary
from distill_lab.formatting import p_value_text, shown
from distill_lab.report.elements import head, row_head, table


def ratings_section(found: RatingSummary | None, *, names: Mapping[str, str], prompts: str = "") -> str:
    """A table of mean ratings, and the agreement with the judge; empty without ratings. prompts: which, for the heading."""
    if found is None:
        return ""
    body = (
        row_head(shown(names.get(label, label)))
        + f"<td>{each.mean:.2f}</td><td>{each.ci95[0]:.2f} to {each.ci95[1]:.2f}</td><td>{each.n:,}</td>"
        for label, each in found.models.items()
    )
    heads = map(head, ("Rated blind, 1 to 5", "Mean", "95% interval", "Prompts"))
    people = "one person" if found.raters == 1 else f"{found.raters} people"
    lines = [f"{found.ratings:,} ratings of {people}, who did not see which model answered."]
    lines += [gain_text(found.gain)] if found.gain else []
    lines.append(agreement_text(found.agreement))
    title = f"Rated by people: {prompts}" if prompts else "Rated by people"
    return (
        f'<h2>{shown(title)}</h2>{table(title, heads, body)}<p class="small muted after">{shown(" ".join(lines))}</p>'
    )


def mean_text(each: ModelRating) -> str:
    """A mean rating with its interval: 3.90 of 5 [3.52 to 4.21], 30 prompts."""
    return f"{each.mean:.2f} of 5 [{each.ci95[0]:.2f} to {each.ci95[1]:.2f}], {each.n:,} prompts"


def gain_text(gain: RatingGain) -> str:
    """The student against its base, in a sentence."""
    low, high = gain.ci95
    p = p_value_text(gain.p_value).replace("&lt;", "<")
    return (
        f"Student against base student: {gain.gain:+.2f} points [{low:+.2f} to {high:+.2f}], p {p}, {gain.n:,} prompts."
    )


def agreement_text(found: Agreement | None) -> str:
    """How far the judge agrees, in a sentence."""
    if found is None:
        return "No judge graded these answers (--grader judge:MODEL), so there is no agreement to state."
    low, high = found.within_one_ci95
    kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}"
    return (
        f"The judge {found.judge} gave the same grade to {found.same:,} of {found.n:,} rated answers, and one that is at "
        f"most one apart to {found.within_one:,} ({found.within_one / found.n:.0%} [{low:.0%} to {high:.0%}]); "
        f"quadratically weighted kappa {kappa}."
    )
