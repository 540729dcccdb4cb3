"""The page's part on test and training: what was left out because it overlaps with the test -> HTML, with pairs.

overlap_section(summary.test_overlap, run_dir / "overlap.jsonl")   of a run
overlap_pairs(rows)                                             pairs of texts, next to each other
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from distill_lab.files.jsonl import read_jsonl
from distill_lab.formatting import shown
from distill_lab.report.elements import badge
from distill_lab.types import Counts

PAIRS_PER_REASON, MAX_CHARS = 3, 400
"""Pairs shown for each reason, and characters of each text."""


def overlap_note(found: Counts | None) -> str:
    """One sentence for people on the stage's counts; empty if nothing was left out."""
    if not found or not found.dropped:
        return ""
    reasons = ", ".join(f"{reason} ({number:,})" for reason, number in found.dropped.items() if number)
    return (
        f"{found.rows_in - found.kept:,} of {found.rows_in:,} training prompts overlap with the test and were "
        f"left out: {reasons}."
    )


def overlap_section(found: Counts | None, pairs: Path) -> str:
    """Counts by reason and the first pairs of each; empty if nothing was left out."""
    note = overlap_note(found)
    if not note:
        return ""
    rows = read_jsonl(pairs) if pairs.is_file() else []
    return (
        f'<h2>Test and training apart</h2><p class="muted">{shown(note)} {shown(pairs.name)} lists them all; the first '
        f"of each kind follow.</p>{overlap_pairs(first_of_each(rows, 'reason', PAIRS_PER_REASON))}"
    )


def first_of_each(rows: Iterable[Mapping[str, str]], field: str, number: int) -> Iterator[Mapping[str, str]]:
    """The first `number` rows of each value of `field`, in their order."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row[field]] += 1
        if seen[row[field]] <= number:
            yield row


def overlap_pairs(rows: Iterable[Mapping[str, str]], *, titles: tuple[str, str] = ("Training", "Test")) -> str:
    """A card for each pair: `text` and `test_text` of the row next to each other, with the reason and both ids."""
    return "".join(
        f'<article class="card example"><div class="top"><span>{badge(shown(row["reason"]), "")}</span>'
        f'<span class="small muted">{shown(row["id"])}, {shown(row["test_id"])}</span></div><div class="answers">'
        + "".join(
            f'<div class="answer"><h3>{title}</h3><p class="text-block" dir="auto">{_cut(row[field])}</p></div>'
            for title, field in zip(titles, ("text", "test_text"), strict=True)
        )
        + "</div></article>"
        for row in rows
    )


def _cut(text: str) -> str:
    return shown(text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} …")
