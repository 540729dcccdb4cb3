"""Scores by group: fields of the test rows, gold label and prompt length -> scores with intervals, for summary.json.

    group_scores(run.path("test.jsonl"), {"teacher": ..., "student": run.path("eval/student.jsonl")}, by_label=False)

A grouping of which every prompt has the same value says nothing and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill_lab.data.prompts import read_prompts
from distill_lab.evaluation.eval_rows import BAD_GOLD, read_eval_rows
from distill_lab.evaluation.statistics import score_interval
from distill_lab.evaluation.summary_file import Group, Grouping, GroupScore
from distill_lab.types import Fields, Message

FIELDS = ("level", "type", "category", "subject", "source", "task")
"""Fields of `Prompt.meta` that test sets group their rows by."""
MAX_GROUPS = 30
"""Of one grouping; the smallest beyond are one group, named after their number."""
LENGTH = "prompt characters"
"""The grouping by length of the user's turns, in NUM_LENGTHS groups."""
NUM_LENGTHS = 4
MAX_NAME_CHARS = 60


@dataclass(slots=True)
class _Item:
    """A test prompt, its groups, and its scores by model."""

    groups: dict[str, str] = field(default_factory=dict)
    num_chars: int = 0
    scores: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def group_scores(test: Path, results: Mapping[str, Path], *, by_label: bool) -> tuple[Grouping, ...]:
    """The groupings of the test prompts, with the scores of each model whose eval file is in `results`.

    by_label: also by gold answer, which is a label. Prompts whose gold answer the grader cannot read do not count.
    """
    fields = {prompt.id: fields_of(prompt.meta) for prompt in read_prompts(test)}
    items = _read(results, fields, by_label=by_label)
    if not items:
        return ()
    found = [_grouping(by, items, sort=in_order) for by in (*FIELDS, "label")]
    _add_lengths(items)
    found.append(_grouping(LENGTH, items, sort=lambda names: sorted(names, key=_upper_end)))
    return tuple(filter(None, found))


def fields_of(meta: Fields) -> dict[str, str]:
    """The fields of a row that name a group: field -> its value as text."""
    values = {name: meta.get(name) for name in FIELDS}
    return {
        name: str(value)
        for name, value in values.items()
        if isinstance(value, (str, int)) and str(value).strip() and len(str(value)) <= MAX_NAME_CHARS
    }


def _read(results: Mapping[str, Path], fields: Mapping[str, dict[str, str]], *, by_label: bool) -> list[_Item]:
    items: dict[str, _Item] = defaultdict(_Item)
    bad: set[str] = set()
    for model, path in results.items():
        for row in read_eval_rows(path):
            item = items[row.id]
            item.scores[model].append(row.score)
            item.groups = dict(fields.get(row.id, {}))
            item.num_chars = num_chars(row.prompt)
            if by_label and row.answer and len(row.answer) <= MAX_NAME_CHARS:
                item.groups["label"] = row.answer
            if row.grade.status == BAD_GOLD:
                bad.add(row.id)
    return [item for name, item in items.items() if name not in bad]


def num_chars(prompt: Iterable[Message]) -> int:
    """Characters of a prompt's user turns."""
    return sum(len(message["content"]) for message in prompt if message.get("role") == "user")


def _add_lengths(items: Iterable[_Item]) -> None:
    """Put the prompts in NUM_LENGTHS groups of about the same size, by length."""
    lengths = [item.num_chars for item in items]
    ends = sorted(
        {int(end) for end in np.quantile(lengths, np.arange(1, NUM_LENGTHS + 1) / NUM_LENGTHS, method="lower")}
    )
    starts = [min(lengths), *(end + 1 for end in ends[:-1])]
    for item in items:
        start, end = next((s, e) for s, e in zip(starts, ends, strict=True) if item.num_chars <= e)
        item.groups[LENGTH] = f"{start:,} to {end:,}"


def _upper_end(name: str) -> int:
    return int(name.split(" to ")[1].replace(",", ""))


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers by size, then texts by alphabet."""
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _grouping(by: str, items: Iterable[_Item], *, sort: Callable[[Iterable[str]], list[str]]) -> Grouping | None:
    members: dict[str, list[_Item]] = defaultdict(list)
    without = 0
    for item in items:
        if by in item.groups:
            members[item.groups[by]].append(item)
        else:
            without += 1
    if len(members) < 2:
        return None
    names = sort(members)
    if len(names) > MAX_GROUPS:
        largest = set(sorted(names, key=lambda name: -len(members[name]))[: MAX_GROUPS - 1])
        others = [item for name in names if name not in largest for item in members[name]]
        names = [name for name in names if name in largest]
        rest = f"{len(members) - len(largest):,} others"
        members[rest] = others
        names.append(rest)
    return Grouping(by, tuple(_group(name, members[name]) for name in names), without)


def _group(name: str, items: list[_Item]) -> Group:
    models = dict.fromkeys(model for item in items for model in item.scores)
    scores: dict[str, GroupScore] = {}
    for model in models:
        means = [sum(found) / len(found) for item in items if (found := item.scores.get(model))]
        scores[model] = GroupScore(sum(means) / len(means), score_interval(means))
    return Group(name, len(items), scores)
