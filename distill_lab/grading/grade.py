"""Completions -> graded: each completion gets a score from a grader.

    tally = grade(Path("prompts.jsonl"), Path("completions.jsonl"), Path("graded.jsonl"), "numeric")

A row of the file is the completion's row and `"grade": {"score", "answer", "status"}`, in the order of the prompts and
of each prompt's samples. The file is there when it is whole. A stop in the middle loses nothing: what is done stands in
`<path>.work/`, and the same inputs and grader go on from there. Memory holds a place in the file per completion, not
the texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from distill_lab import activity
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import JsonlAppender, parse_json_object, read_jsonl
from distill_lab.files.outputs import remove_work, work_folder
from distill_lab.grading.graders import Grader, OneByOne, Pair, load_grader
from distill_lab.run import fingerprint
from distill_lab.types import Completion, Grade, Prompt

NUM_AT_ONCE = 256
"""Completions that a grader gets, and that reach the disk, at a time."""

OnProgress = Callable[[int, int], None]
"""Called with the rows done and the rows there will be."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a grader found: `num_rows == ok + unparseable + timeout`."""

    num_rows: int
    """Completions."""
    ok: int
    """With an answer that could be graded, right or wrong."""
    unparseable: int
    """Without one: cut, failed, or no answer that the grader could read. They score 0."""
    timeout: int
    """The grader was stopped at its time limit; they score 0."""
    score: float
    """Mean grade in [0, 1]; 0 for no rows."""

    def __str__(self) -> str:
        return f"{self.num_rows} graded: {self.ok} ok, {self.unparseable} unparseable, {self.timeout} timed out"


@dataclass(frozen=True, slots=True)
class Graded:
    """One sample of one prompt."""

    prompt: Prompt
    sample: int
    completion: Completion | None
    """None where there is none."""
    grade: Grade


class Answers:
    """Prompts and completions joined: every sample of every prompt, in the order of the prompts.

    Raises DataError for malformed and double rows, UserError for no prompts and for completions of other prompts. The
    gold answer is the prompt's own; where it has none, the completion that came with the data is the reference.
    """

    def __init__(self, prompts: Path, completions: Path) -> None:
        self.prompts, self.completions = prompts, completions
        self.places = _places(completions)
        """(prompt id, sample) -> where the completion stands in the file."""
        self.num_samples = 1 + max((sample for _, sample in self.places), default=0)
        ids = {prompt.id for prompt in read_prompts(prompts)}
        if not ids:
            raise UserError(f"{prompts}: no prompts, so nothing to score; give at least one")
        self.num_prompts = len(ids)
        foreign = [name for name, _ in self.places if name not in ids]
        if foreign:
            raise UserError(
                f"{len(foreign)} completions are of prompts that {prompts} does not have (first: {foreign[0]}); "
                "give the prompts they were made from"
            )

    def pairs(self, *, skip: int = 0, missing: bool) -> Iterator[tuple[Prompt, int, Completion | None]]:
        """(prompt, sample, completion) from the `skip`th on; samples without a completion where `missing` are None."""
        with self.completions.open("rb") as file:
            for prompt in read_prompts(self.prompts, references=True):
                for sample in range(self.num_samples):
                    place = self.places.get((prompt.id, sample))
                    if place is None and not missing:
                        continue
                    if skip:
                        skip -= 1
                    elif place is None:
                        yield prompt, sample, None
                    else:
                        file.seek(place)
                        yield prompt, sample, Completion.from_json(json.loads(file.readline()))

    def graded(self, grader: Grader, *, skip: int = 0, missing: bool) -> Iterator[Graded]:
        """As `pairs`, each with its grade; what is missing scores 0."""
        pairs, done = self.pairs(skip=skip, missing=missing), skip
        total = self.num_prompts * self.num_samples if missing else len(self.places)
        while batch := list(islice(pairs, NUM_AT_ONCE)):
            activity.report("grading", done, total)
            given = [(prompt, found) for prompt, _, found in batch if found is not None]
            grades = iter(_all(grader, given, done, total))
            done += len(batch)
            for prompt, sample, found in batch:
                grade = next(grades) if found is not None else Grade(0.0, None, "unparseable")
                yield Graded(prompt, sample, found, grade)


def _all(grader: Grader, pairs: list[Pair], done: int, total: int) -> list[Grade]:
    """The grades of `pairs`; of a grader that looks at each for itself, with a report before each."""
    if not isinstance(grader, OneByOne):
        return grader.grade_all(pairs)
    grades = []
    for number, pair in enumerate(pairs):
        activity.report("grading", done + number, total)
        grades.append(grader(*pair))
    return grades


def grade(
    prompts: Path,
    completions: Path,
    path: Path,
    grader: str | Grader,
    *,
    on_progress: OnProgress | None = None,
) -> Tally:
    """Grade `completions` of `prompts` into `path`; `grader` is a name, NAME:ARGUMENT, or a grader.

    Raises what `Answers` raises, and UserError for an unknown grader or a prompt without what it needs.
    """
    grader = load_grader(grader) if isinstance(grader, str) else grader
    answers = Answers(prompts, completions)

    def rows(skip: int) -> Iterator[dict[str, Any]]:
        for item in answers.graded(grader, skip=skip, missing=False):
            assert item.completion is not None
            yield item.completion.to_json() | {"grade": dataclasses.asdict(item.grade)}

    write_resumable(path, [grader.name, prompts, completions], rows, total=len(answers.places), on_progress=on_progress)
    return read_tally(path)


def read_tally(path: Path) -> Tally:
    """The Tally of a graded or an eval file."""
    statuses, score = dict.fromkeys(("ok", "unparseable", "timeout"), 0), 0.0
    for row in read_jsonl(path):
        statuses[row["grade"]["status"]] += 1
        score += row["grade"]["score"]
    num_rows = sum(statuses.values())
    return Tally(num_rows, **statuses, score=score / max(num_rows, 1))


def write_resumable(
    path: Path,
    inputs: Any,
    rows: Callable[[int], Iterable[dict[str, Any]]],
    *,
    total: int,
    on_progress: OnProgress | None = None,
) -> None:
    """Write `rows(skip)`, what is left after the first `skip` rows, to `path`, atomically and in steps that survive.

    `inputs` is everything the rows depend on (Paths count by content): rows that an earlier execution with the same
    inputs left in `<path>.work/` are kept and not made again.
    """
    work = work_folder(path)
    partial = work / f"{fingerprint(inputs)[:16]}.jsonl"
    with JsonlAppender(partial) as file:  # cuts off a line torn by a kill
        with partial.open("rb") as old:
            done = sum(1 for _ in old)
        try:
            left = iter(rows(done))
            while batch := list(islice(left, NUM_AT_ONCE)):
                file.append(batch)
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            if not done:
                remove_work(path)
    if not done:
        path.write_bytes(b"")
        return
    partial.replace(path)
    remove_work(path)


def _places(path: Path) -> dict[tuple[str, int], int]:
    """(prompt id, sample) -> byte offset, every row checked."""
    places: dict[tuple[str, int], int] = {}
    place = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                row = parse_json_object(line, str(path), number)
                try:
                    completion = Completion.from_json(row)
                except KeyError as error:
                    raise DataError(str(path), number, f"not a completion, it lacks {error}") from None
                if not isinstance(completion.id, str) or not isinstance(completion.content, str):
                    raise DataError(str(path), number, "the completion's id or content is no text")
                if not isinstance(completion.sample, int) or completion.sample < 0:
                    raise DataError(str(path), number, f"sample {completion.sample!r} is no number from 0 on")
                key = (completion.id, completion.sample)
                if key in places:
                    raise DataError(str(path), number, f"a second completion of {key[0]}, sample {key[1]}; remove one")
                places[key] = place
            place += len(line)
    return places
