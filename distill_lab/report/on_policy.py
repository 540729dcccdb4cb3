"""The page's part on rollouts: what the teacher thinks of the student's own text, before and after, and every round.

summary.json of a run that has `on_policy` -> HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.verdict import percent
from distill_lab.formatting import seconds_text, shown
from distill_lab.train.rollout_stats import OwnText, RoundStats

FIGURES = {
    "teacher_nats": "The teacher's nats per token",
    "divergence": "Divergence from the teacher, nats per token",
    "student_nats": "The student's nats per token (its entropy)",
    "texts": "Texts",
    "tokens": "Tokens",
    "truncated": "Cut at the token limit",
}
MAX_ROWS = 40
"""Rounds that the page shows one by one; of more, it shows every nth."""


def on_policy_section(summary: Summary) -> str:
    """The section as HTML; empty if the summary has no `on_policy`."""
    found = summary.on_policy
    if found is None:
        return ""
    text = (
        f"In {found.num_rounds:,} rounds the student wrote {found.rollouts:,} rollouts with "
        f"{found.tokens_generated:,} tokens; {percent(found.truncated_share)} of them were cut at the token limit."
    )
    which = "held-out prompts" if found.held_out else "training prompts"
    return (
        f'<h2>The student\'s own text</h2><p class="muted">{text}</p>'
        f'<div class="card scroll">{_own_text(found.before, found.after)}</div>'
        f'<p class="small muted after">Sampled answers to {which}. Few nats: the teacher could have written them.</p>'
        f'<div class="card scroll">{_rounds(found.rounds)}</div>'
    )


def _own_text(before: OwnText | None, after: OwnText | None) -> str:
    columns = {title: found for title, found in (("Before the rounds", before), ("After", after)) if found}
    if not columns:
        return "<p>Not measured: no text could be scored.</p>"
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", *columns))
    body = ""
    for name, title in FIGURES.items():
        values: list[int | float] = [getattr(found, name) for found in columns.values()]
        cells = "".join(
            f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{value:.3f}</td>" for value in values
        )
        body += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _rounds(rounds: Sequence[RoundStats]) -> str:
    titles = ("Round", "Rollouts", "Kept", "Dropped", "Cut", "Tokens", "Writing took")
    heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = ""
    for each in rounds[:: -(-len(rounds) // MAX_ROWS) or 1]:
        dropped = "<br>".join(f"{number:,} {shown(reason)}" for reason, number in each.dropped.items())
        body += (
            f'<tr><th scope="row">{each.round + 1}</th><td>{each.rollouts:,}</td><td>{each.kept:,}</td>'
            f"<td>{dropped or 0}</td><td>{each.truncated:,}</td><td>{each.tokens:,}</td>"
            f"<td>{seconds_text(each.seconds)}</td></tr>"
        )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
