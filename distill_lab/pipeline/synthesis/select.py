"""Which new rows stay, and how they are written: minimum ratings, shares of task types, the form of the file.

write_rated(rows, path, minimum={"helpfulness": 6})          write_balanced(rows, path, seed=0)
write_repeated(rows, path, total=1000)                       write_out(rows, Path("out.jsonl"), form="messages")
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

from distill_lab.chat import answer_text
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_json, write_jsonl
from distill_lab.pipeline.synthesis.jobs import Row
from distill_lab.pipeline.synthesis.jobs.balance import SHARES, TYPE
from distill_lab.pipeline.synthesis.jobs.rate import SCALES
from distill_lab.training_data.training_set import instruction_row
from distill_lab.types import Counts, JsonObject

SHOWN = (TYPE, *(name for scales in SCALES.values() for name in scales))
"""What rows in the form `instruction` show of their meta."""


def minimum_ratings(given: Sequence[str], kind: str) -> dict[str, int]:
    """NAME=NUMBER as a mapping. Raises UserError for a name or number that this kind of rating does not have."""
    found: dict[str, int] = {}
    for text in given:
        name, _, number = (part.strip() for part in text.partition("="))
        if name not in SCALES[kind]:
            raise UserError(f"--min-rating {text}: no rating {name!r} of {kind}; there are {', '.join(SCALES[kind])}")
        highest = SCALES[kind][name].highest
        if not number.isdigit() or int(number) > highest:
            raise UserError(f"--min-rating {text}: give a whole number from 0 to {highest}, as {name}={highest}")
        if found.setdefault(name, int(number)) != int(number):
            raise UserError(f"--min-rating: {name} is given twice")
    return found


def write_rated(rows: Path, path: Path, *, minimum: Mapping[str, int]) -> Counts:
    """Write the rows that have at least these ratings."""
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[Row]:
        for row in read_jsonl(rows):
            low = next((name for name, least in minimum.items() if row["meta"][name] < least), None)
            if low is None:
                yield row
            else:
                dropped[f"{low} below {minimum[low]}"] += 1

    number = write_jsonl(path, kept())
    return Counts(number + dropped.total(), number, dict(dropped))


def shares(total: int) -> dict[str, int]:
    """How many of `total` rows each type of task gets, at least one."""
    return {name: math.ceil(total * share - 1e-9) for name, share in SHARES.items()}


def write_balanced(rows: Path, path: Path, *, seed: int) -> Counts:
    """Write as many rows of each type as its share allows, drawn by `seed`, in their order."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(read_jsonl(rows)):
        found[row["meta"][TYPE]].append(place)
    total = sum(map(len, found.values()))
    draw, taken = random.Random(seed), set[int]()
    for name, number in shares(total).items():
        places = found[name]
        taken.update(places if len(places) <= number else draw.sample(places, number))
    kept = write_jsonl(path, (row for place, row in enumerate(read_jsonl(rows)) if place in taken))
    return Counts(total, kept, {"over the share of their type": total - kept})


def write_repeated(rows: Path, path: Path, *, total: int) -> int:
    """Write the rows, and copies of those whose type has less than its share of `total`; return the number of copies.

    A copy's id ends in .2, .3 and so on.
    """
    kept = list(read_jsonl(rows))
    by_type: defaultdict[str, list[Row]] = defaultdict(list)
    for row in kept:
        by_type[row["meta"][TYPE]].append(row)
    wanted, copies = shares(total), list[Row]()
    for name, found in by_type.items():
        missing = max(0, wanted[name] - len(found))
        for number, row in enumerate(islice(cycle(found), missing)):
            copies.append(row | {"id": f"{row['id']}.{number // len(found) + 2}"})
    write_jsonl(path, [*kept, *copies])
    return len(copies)


def histogram(rows: Path, kind: str) -> dict[str, dict[int, int]]:
    """How many rows have each rating: name -> rating, from 0 to the highest -> number of rows."""
    counts = {name: dict.fromkeys(range(scale.highest + 1), 0) for name, scale in SCALES[kind].items()}
    for row in read_jsonl(rows):
        for name, numbers in counts.items():
            numbers[int(row["meta"][name])] += 1
    return counts


def write_out(rows: Path, path: Path, *, form: str) -> None:
    """Write the rows for others: one per line or, to a .json file, as an array."""
    found = (row if form == "messages" else _instruction(row) for row in read_jsonl(rows))
    if path.suffix == ".json":
        write_json(path, list(found))
    else:
        write_jsonl(path, found)


def _instruction(row: Row) -> JsonObject:
    """A row as `{"instruction", "output"}` with its gold answer, ratings and type; with several turns as `messages`."""
    completion = row.get("completion") or []
    *before, last = row["messages"]
    if len(completion) > 1:
        found: JsonObject = {"messages": [*row["messages"], *completion]}
    elif completion:
        found = instruction_row(row["messages"], answer_text(completion[0]["content"], completion[0].get("thinking")))
    elif not before or (len(before) == 1 and before[0]["role"] == "system"):
        found = {**({"system": before[0]["content"]} if before else {}), "instruction": last["content"]}
    else:
        found = {"messages": row["messages"]}
    known = {name: row["meta"][name] for name in SHOWN if name in row["meta"]}
    return found | ({"answer": row["answer"]} if row["answer"] is not None else {}) | known
