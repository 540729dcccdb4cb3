"""New rows that say nothing new: copies and near duplicates of one another, and of the rows they were made from.

    kept, dropped = distinct(seeds, rows, compared="new", num_words=8)

Texts are compared as `data/contamination.py` compares training prompts with a test.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from distill_lab.data.contamination import TestPrompts, question_text
from distill_lab.data.near_duplicates import MAX_COMPARED
from distill_lab.data.words import one_text, words
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.synthesis.jobs import Compared, Row
from distill_lab.types import Counts

COPY, NEAR = "duplicate", "near duplicate"


def distinct(
    seeds: Iterable[Row], rows: Iterable[Row], *, compared: Compared, num_words: int
) -> tuple[list[Row], Counter[str]]:
    """The rows to keep in their order, and the others counted by reason.

    compared: see `Job.COMPARED`. num_words 0: near duplicates stay. Near duplicates are looked for among the first
    MAX_COMPARED prompts, at most half of which are seeds.
    """
    first: list[Row] = []
    seen: set[str] = set()
    if compared in ("new", "instruction"):
        for seed in seeds:
            seen.add(_key(seed, compared))
            if compared == "new" and len(first) < MAX_COMPARED // 2:
                first.append(seed)
    dropped: Counter[str] = Counter()
    kept: list[Row] = []
    for row in rows:
        key = _key(row, compared)
        if compared and key in seen:
            dropped[COPY] += 1
        else:
            seen.add(key)
            kept.append(row)
    if num_words and compared in ("new", "instruction"):
        near = _near(first, kept, num_words=num_words)
        if near:
            dropped[NEAR] = len(near)
            kept = [row for number, row in enumerate(kept) if number not in near]
    return kept, dropped


def _near(seeds: Iterable[Row], rows: Iterable[Row], *, num_words: int) -> set[int]:
    """Places of the rows that are near duplicates of a seed or of an earlier row."""
    old = [{"id": "seed", "messages": seed["messages"]} for seed in seeds]
    new = islice(({"id": str(n), "messages": row["messages"]} for n, row in enumerate(rows)), MAX_COMPARED - len(old))
    found = TestPrompts([*old, *new], num_words=num_words).near_pairs()
    return {int(id) for id, _ in found if id != "seed"}


def write_distinct(seeds: Path, rows: Path, path: Path, *, compared: Compared, num_words: int) -> Counts:
    """Write the rows of `rows` that say something new."""
    made = list(read_jsonl(rows))
    kept, dropped = distinct(read_jsonl(seeds), made, compared=compared, num_words=num_words)
    write_jsonl(path, kept)
    return Counts(len(made), len(kept), dict(dropped))


def _key(row: Row, compared: Compared) -> str:
    if compared not in ("new", "instruction"):
        return json.dumps([row["messages"], row.get("completion")], sort_keys=True)
    text = question_text(row["messages"])
    return one_text(words(text)) or text.strip()
