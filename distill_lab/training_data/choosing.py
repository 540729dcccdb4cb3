"""Which rows and prompts a student is trained on: scores of rows, pass rates of prompts -> a part of them, all counted.

choose_rows(rows, learnability, Path("chosen.jsonl"), share=0.5)        by what they can still teach
draw_rows(rows, learnability, Path("chosen.jsonl"), share=0.5, seed=0)  as many, at random: the control
write_in_band(prompts, graded, path, low=0.2, high=0.8)                 prompts that the student solves sometimes
write_drawn(prompts, graded, band, path, seed=0)                        as many, at random: the control
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from distill_lab.errors import DataError, NoData
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.training_data.selection import NO_GOLD
from distill_lab.types import Counts, JsonObject

LITTLE, SURPRISED, FAR = "little left to learn", "the teacher is surprised itself", "far beyond the student"
TOO_EASY, TOO_HARD, FAILED, NOT_DRAWN = "too easy", "too hard", "no sample of the student", "not drawn"
EXTREMES = 0.05
"""Maximum share of the rows that is left out because it surprises the teacher, and of those furthest from the student; less
if nearly all rows are kept."""


def choose_rows(rows: Path, learnability: Path, path: Path, *, share: float) -> Counts:
    """Write the `share` of `rows` that has most to teach: the largest gaps but for the extremes, in their order.

    learnability: a line for each row (`train/learnability.py`). Rows that training would drop are left out with their
    reason; the share is of the others. Raises NoData if there are none.
    """
    lines = _lines(rows, learnability)
    usable = [place for place, line in enumerate(lines) if "dropped" not in line]
    number = _number(rows, usable, share)
    extremes = int(min(EXTREMES, (1 - share) / 4) * len(usable))
    why: dict[int, str] = {}
    for reason, key in ((SURPRISED, "teacher"), (FAR, "gap")):
        left = [place for place in usable if place not in why]
        highest = sorted(left, key=lambda place: lines[place][key], reverse=True)[:extremes]
        why |= dict.fromkeys(highest, reason)
    left = sorted((place for place in usable if place not in why), key=lambda place: -lines[place]["gap"])
    why |= dict.fromkeys(left[number:], LITTLE)
    return _write(rows, path, lambda place: lines[place].get("dropped") or why.get(place))


def draw_rows(rows: Path, learnability: Path, path: Path, *, share: float, seed: int) -> Counts:
    """Write as many rows as `choose_rows` would, drawn at random. Raises NoData if there are none."""
    lines = _lines(rows, learnability)
    usable = [place for place, line in enumerate(lines) if "dropped" not in line]
    drawn = set(random.Random(seed).sample(usable, _number(rows, usable, share)))
    return _write(rows, path, lambda place: lines[place].get("dropped") or (None if place in drawn else NOT_DRAWN))


def _lines(rows: Path, learnability: Path) -> list[dict[str, Any]]:
    lines, number = list(read_jsonl(learnability)), sum(1 for _ in read_jsonl(rows))
    if len(lines) != number:
        raise DataError(str(learnability), None, f"{len(lines)} lines for the {number} rows of {rows}")
    return lines


def _number(rows: Path, usable: Collection[int], share: float) -> int:
    if not usable:
        raise NoData(f"{rows}: no row that can be trained, so there is nothing to choose from")
    return max(1, round(share * len(usable)))


def _write(rows: Path, path: Path, why_not: Callable[[int], str | None]) -> Counts:
    """The rows at the places for which `why_not` gives no reason."""
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[JsonObject]:
        for place, row in enumerate(read_jsonl(rows)):
            if reason := why_not(place):
                dropped[reason] += 1
            else:
                yield row

    number = write_jsonl(path, kept())
    return Counts(number + dropped.total(), number, dict(dropped))


def pass_rates(graded: Path, *, threshold: float = 1.0) -> dict[str, float | None]:
    """Prompt id -> share of its samples whose grade is at least `threshold`; None if the gold answer is unreadable.

    Samples that failed do not count; a prompt all of whose samples failed is not in it.
    """
    samples: dict[str, list[bool]] = defaultdict(list)
    unreadable = set[str]()
    for number, row in enumerate(read_jsonl(graded), start=1):
        if "grade" not in row:
            raise DataError(str(graded), number, "this completion has no grade; run distill grade on it first")
        if row["grade"]["status"] == "bad_gold":
            unreadable.add(row["id"])
        elif row["finish_reason"] != "error":
            samples[row["id"]].append(row["grade"]["score"] >= threshold)
    rates: dict[str, float | None] = {id: sum(found) / len(found) for id, found in samples.items()}
    return rates | dict.fromkeys(unreadable)


def write_in_band(
    prompts: Path, graded: Path, path: Path, *, low: float, high: float, threshold: float = 1.0
) -> Counts:
    """Write the prompts whose pass rate is in [low, high]; the others are too easy, too hard or cannot be graded."""
    rates = pass_rates(graded, threshold=threshold)
    ids = [row["id"] for row in read_jsonl(prompts)]

    def why_not(place: int) -> str | None:
        rate = rates.get(ids[place], -1.0)
        if rate is None:
            return NO_GOLD
        if rate < 0:
            return FAILED
        return TOO_HARD if rate < low else TOO_EASY if rate > high else None

    return _write(prompts, path, why_not)


def write_drawn(prompts: Path, graded: Path, band: Path, path: Path, *, seed: int) -> Counts:
    """Write as many prompts as `band` has, drawn at random from all that have a pass rate."""
    rates = pass_rates(graded)
    ids = [row["id"] for row in read_jsonl(prompts)]
    known = [id for id in ids if rates.get(id) is not None]
    drawn = set(random.Random(seed).sample(known, sum(1 for _ in read_jsonl(band))))

    def why_not(place: int) -> str | None:
        if ids[place] in drawn:
            return None
        return NOT_DRAWN if rates.get(ids[place]) is not None else NO_GOLD if ids[place] in rates else FAILED

    return _write(prompts, path, why_not)
