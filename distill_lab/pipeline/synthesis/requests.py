"""Rows -> requests: what a job asks about each row, and for expand the draws of examples that take the place of rows.

    counts = write_requests(data, requests, job="refine", kind="", template=asdict(template))

A request's id is its row's, with `/NAME` for a job that asks in several parts. Answers find their rows by these ids alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.synthesis.distinct import distinct
from distill_lab.pipeline.synthesis.jobs import Row, load
from distill_lab.pipeline.synthesis.reading import shown
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.types import Counts, Fields, JsonObject, Prompt

MAX_TRIES = 50
"""Tries to draw examples in an order in which they were not shown yet."""


def request_id(row: str, part: str) -> str:
    """The id of a request about a row."""
    return f"{row}/{part}" if part else row


def write_requests(rows: Path, path: Path, *, job: str, kind: str, template: Fields) -> Counts:
    """Write the requests about `rows` to `path`; rows that the job cannot ask about are counted by reason."""
    asking, form = load(job), template_of(template)
    dropped: Counter[str] = Counter()
    num_kept = 0

    def requests() -> Iterator[JsonObject]:
        nonlocal num_kept
        for row in read_jsonl(rows):
            parts = asking.values(row, kind)
            if isinstance(parts, str):
                dropped[parts] += 1
                continue
            num_kept += 1
            for part, values in parts.items():
                text = form.fill(values)
                yield Prompt(request_id(row["id"], part), [{"role": "user", "content": text}]).to_json()

    write_jsonl(path, requests())
    return Counts(num_kept + dropped.total(), num_kept, dict(dropped))


def template_of(fields: Mapping[str, Any]) -> Template:
    """The template that a stage has as one of its inputs."""
    return Template(**{**fields, "placeholders": tuple(fields["placeholders"])})


def write_draws(data: Path, *files: Path, num_rows: int, num_shown: int, seed: int, num_words: int) -> Counts:
    """Write a draw of examples for each new instruction that is still missing to the last of `files`.

    The others are the results of earlier rounds. Draws depend only on the seed and their number. Raises UserError if the
    data has fewer rows than are shown together.
    """
    *results, path = files
    rows = list(read_jsonl(data))
    if len(rows) < num_shown:
        raise UserError(f"--num-shown {num_shown}: the data has only {len(rows)} rows; show fewer, or give more data")
    found = list(chain.from_iterable(map(read_jsonl, results)))
    made = (result["row"] for result in found if result["row"])
    kept, _ = distinct(rows, made, compared="new", num_words=num_words)
    end = len(found) + max(0, num_rows - len(kept))
    draws: list[Row] = []
    for number, places in enumerate(islice(_draws(len(rows), num_shown, seed), end)):
        if number >= len(found):
            taken = [rows[place] for place in places]
            texts = [shown(row["messages"]) for row in taken]
            draws.append({"id": f"new-{number}", "examples": texts, "shown": [row["id"] for row in taken]})
    write_jsonl(path, draws)
    return Counts(len(draws), len(draws))


def _draws(num_rows: int, num_shown: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Places of the rows shown together, without end; none comes again as long as others are found in a few tries."""
    drawn: set[tuple[int, ...]] = set()
    for number in count():
        tries = (_draw(num_rows, num_shown, f"{seed}/{number}/{attempt}") for attempt in range(MAX_TRIES))
        places = next((each for each in tries if each not in drawn), None)
        places = places or _draw(num_rows, num_shown, f"{seed}/{number}")
        drawn.add(places)
        yield places


def _draw(num_rows: int, num_shown: int, seed: str) -> tuple[int, ...]:
    return tuple(random.Random(seed).sample(range(num_rows), num_shown))


def first_request(requests: Path) -> str:
    """The text of the first request; empty if there is none."""
    return next((row["messages"][0]["content"] for row in read_jsonl(requests)), "")
