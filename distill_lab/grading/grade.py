"""Grade completions: a grader gives each completion a score.

    tally = grade(Path("prompts.jsonl"), Path("completions.jsonl"), Path("graded.jsonl"), "numeric")

Each row of the output is the completion's row plus `"grade": {"score", "answer", "status"}`, in the order of the prompts and
of each prompt's samples. A row whose gold answer the grader cannot read has the status `bad_gold` and is not in the mean.
The file appears only when it is complete. An interruption loses nothing: finished rows are in `<path>.work/`, and the same
inputs and grader resume from there. Memory holds a file offset and a digest per completion, not the texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from distill_lab import activity
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError, UserError
from distill_lab.files.id_index import IdIndex
from distill_lab.files.jsonl import JsonlAppender, parse_json_object, read_jsonl, write_jsonl
from distill_lab.files.outputs import remove_work, work_folder
from distill_lab.generation.completions import read_completions
from distill_lab.grading.graders import (
    AskingGrader,
    BadGoldError,
    Grader,
    OneByOne,
    Pair,
    grade_or_bad_gold,
    load_grader,
    replies_path,
)
from distill_lab.run import fingerprint
from distill_lab.types import Completion, Grade, JsonObject, Prompt

NUM_AT_ONCE = 256
"""Number of completions to grade and write at a time."""

NUM_NAMED = 5
"""Number of prompts to name whose gold answers cannot be read."""

OnProgress = Callable[[int, int], None]
"""Called with the number of finished rows and the total."""
OnNote = Callable[[str], None]
"""Called with what a user should know."""


def no_note(note: str) -> None:
    """Nobody is to know."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of grades: `num_rows == ok + unparseable + timeout + bad_gold`."""

    num_rows: int
    """All completions."""
    ok: int
    """Completions with an answer that could be graded, correct or wrong."""
    unparseable: int
    """Completions without one: cut off, failed, or no answer that the grader could read. They score 0."""
    timeout: int
    """Completions for which the grader exceeded its time limit. They score 0."""
    score: float
    """Mean grade in [0, 1] of the rows that are not `bad_gold`; 0 for no rows."""
    bad_gold: int = 0
    """Completions of prompts whose gold answer the grader cannot read. They do not count in the mean."""
    bad_gold_ids: tuple[str, ...] = ()
    """The first of those prompts."""

    def __str__(self) -> str:
        counts = f"{self.num_rows} graded: {self.ok} ok, {self.unparseable} unparseable, {self.timeout} timed out"
        return f"{counts}, {bad_gold_note(self.bad_gold, self.bad_gold_ids)}" if self.bad_gold else counts


def bad_gold_note(number: int, ids: Sequence[str]) -> str:
    """How many gold answers could not be read, naming the first."""
    more = ", ..." if number > len(ids) else ""
    return f"{number} left out because their gold answer cannot be read ({', '.join(ids)}{more})"


@dataclass(frozen=True, slots=True)
class Graded:
    """One sample of one prompt."""

    prompt: Prompt
    sample: int
    completion: Completion | None
    """None if it is missing."""
    grade: Grade


class Answers:
    """Joins prompts and completions: every sample of every prompt, in the order of the prompts.

    Raises DataError for malformed and duplicate rows, UserError for no prompts and for completions of other prompts. The
    gold answer is the prompt's; if it has none, the completion from the data is the reference.
    """

    def __init__(self, prompts: Path, completions: Path) -> None:
        self.prompts, self.completions = prompts, completions
        ids = IdIndex()
        for number, prompt in enumerate(read_prompts(prompts)):
            ids.add(prompt.id, number)
        self.num_prompts = len(ids)
        self._offsets, self.num_samples = IdIndex(), 1
        foreign, first = 0, ""
        for completion, line, offset in read_completions(completions):
            if not self._offsets.add(_key(completion.id, completion.sample), offset):
                reason = f"a second completion of {completion.id}, sample {completion.sample}; remove one"
                raise DataError(str(completions), line, reason)
            self.num_samples = max(self.num_samples, 1 + completion.sample)
            if completion.id not in ids:
                foreign, first = foreign + 1, first or completion.id
        self.num_completions = len(self._offsets)
        if not self.num_prompts:
            raise UserError(f"{prompts}: no prompts to score; give at least one")
        if foreign:
            raise UserError(
                f"{foreign} completions belong to prompts that are not in {prompts} (first: {first}); "
                "give the prompts they were made from"
            )

    def pairs(self, *, skip: int = 0, missing: bool) -> Iterator[tuple[Prompt, int, Completion | None]]:
        """Yield (prompt, sample, completion) after the first `skip`; with `missing`, also samples without a completion."""
        with self.completions.open("rb") as file:
            for prompt in read_prompts(self.prompts, references=True):
                for sample in range(self.num_samples):
                    offset = self._offsets.get(_key(prompt.id, sample))
                    if offset is None and not missing:
                        continue
                    if skip:
                        skip -= 1
                    elif offset is None:
                        yield prompt, sample, None
                    else:
                        file.seek(offset)
                        yield prompt, sample, Completion.from_json(json.loads(file.readline()))

    def asking(
        self, grader: Grader, output: Path, paid: Sequence[Path], on_note: OnNote
    ) -> AbstractContextManager[None]:
        """For a block that grades them into `output`: a grader that asks a model keeps its replies, and counts its costs."""
        if not isinstance(grader, AskingGrader):
            return nullcontext()
        pairs = ((prompt, found) for prompt, _, found in self.pairs(missing=False) if found is not None)
        return grader.asking(replies_path(output), pairs, paid=paid, on_note=on_note)

    def graded(self, grader: Grader, *, skip: int = 0, missing: bool) -> Iterator[Graded]:
        """Like `pairs`, each with its grade; missing completions score 0."""
        pairs, done = self.pairs(skip=skip, missing=missing), skip
        total = self.num_prompts * self.num_samples if missing else self.num_completions
        while batch := list(islice(pairs, NUM_AT_ONCE)):
            activity.report("grading", done, total)
            given = [(prompt, found) for prompt, _, found in batch if found is not None]
            grades = iter(_all(grader, given, done, total))
            done += len(batch)
            for prompt, sample, found in batch:
                grade = next(grades) if found is not None else Grade(0.0, None, "unparseable")
                yield Graded(prompt, sample, found, grade)


def _all(grader: Grader, pairs: list[Pair], done: int, total: int) -> list[Grade]:
    """Grade `pairs`; report progress before each one if the grader handles them one by one."""
    if not isinstance(grader, OneByOne):
        return grader.grade_all(pairs)
    grades = []
    for number, pair in enumerate(pairs):
        activity.report("grading", done + number, total)
        grades.append(grade_or_bad_gold(grader, *pair))
    return grades


def grade(
    prompts: Path,
    completions: Path,
    path: Path,
    grader: str | Grader,
    *,
    paid: Sequence[Path] = (),
    on_note: OnNote = no_note,
    on_progress: OnProgress | None = None,
) -> Tally:
    """Grade `completions` of `prompts` and write them to `path`; `grader` is a name, NAME:ARGUMENT, or a grader.

    A grader that asks a model keeps its replies in `replies_path(path)`. paid: other completions files of the same run,
    whose costs count toward engine.price.max_cost. on_note: receives what the replies of a server cost.

    Raises the errors of `Answers`, and UserError for an unknown grader, a prompt that lacks what the grader needs, or if the
    grader cannot read a single gold answer.
    """
    grader = load_grader(grader) if isinstance(grader, str) else grader
    answers = Answers(prompts, completions)

    def rows(skip: int) -> Iterator[JsonObject]:
        for item in answers.graded(grader, skip=skip, missing=False):
            assert item.completion is not None
            yield {**item.completion.to_json(), "grade": dataclasses.asdict(item.grade)}

    with answers.asking(grader, path, paid, on_note):
        write_resumable(
            path, [grader.name, prompts, completions], rows, total=answers.num_completions, on_progress=on_progress
        )
    tally = read_tally(path)
    if tally.bad_gold and tally.bad_gold == tally.num_rows:
        path.unlink()
        raise no_readable_gold(prompts, grader.name, tally.bad_gold_ids)
    return tally


def no_readable_gold(prompts: Path, grader: str, ids: Sequence[str], *, source: str = "") -> UserError:
    """The error for prompts none of whose gold answers the grader can read; it names `source` if that is given."""
    first = next((prompt.answer for prompt in read_prompts(prompts, references=True) if prompt.id == ids[0]), "")
    return UserError(
        f"{source or prompts}: the grader {grader} cannot read any gold answer (first: {ids[0]}, {str(first)[:80]!r}); "
        "choose another --grader"
    )


def read_tally(path: Path) -> Tally:
    """The Tally of a graded file or an eval file."""
    statuses, score = dict.fromkeys(("ok", "unparseable", "timeout", "bad_gold"), 0), 0.0
    bad: dict[str, None] = {}
    for row in read_jsonl(path):
        statuses[row["grade"]["status"]] += 1
        score += row["grade"]["score"]
        if row["grade"]["status"] == "bad_gold" and len(bad) < NUM_NAMED:
            bad[row["id"]] = None
    num_rows = sum(statuses.values())
    return Tally(num_rows, **statuses, score=score / max(num_rows - statuses["bad_gold"], 1), bad_gold_ids=tuple(bad))


def check_golds(prompts: Path, grader: Grader, *, source: str = "") -> list[str]:
    """Ids of the prompts whose gold answer `grader` cannot read, in their order.

    Grades each gold answer as if it were a completion. Raises UserError for a prompt without a gold answer, and if the
    grader cannot read any of them; that error names `source`, if given, in place of the file.
    """
    bad, number = list[str](), 0
    for prompt in read_prompts(prompts, references=True):
        number += 1
        try:
            grader(prompt, Completion(prompt.id, 0, prompt.answer or "", None, "stop", 0))
        except BadGoldError:
            bad.append(prompt.id)
    if bad and len(bad) == number:
        raise no_readable_gold(prompts, grader.name, bad, source=source)
    return bad


def write_resumable(
    path: Path,
    inputs: object,
    rows: Callable[[int], Iterable[JsonObject]],
    *,
    total: int,
    on_progress: OnProgress | None = None,
) -> None:
    """Write rows to `path` atomically and resumably; `rows(skip)` yields all rows after the first `skip`.

    `inputs` is everything the rows depend on (Paths count by content): rows in `<path>.work/` from an earlier execution
    with the same inputs are reused.
    """
    work = work_folder(path)
    partial = work / f"{fingerprint(inputs)[:16]}.jsonl"
    with JsonlAppender(partial) as file:  # removes a line that a kill left incomplete
        done = _keep_whole(partial)
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
        write_jsonl(path, [])
        return
    partial.replace(path)
    remove_work(path)


def _keep_whole(partial: Path) -> int:
    """Cut a file of finished rows before its first damaged row; the number of rows that are left."""
    done = end = 0
    with partial.open("rb+") as file:
        for line in file:
            try:
                parse_json_object(line, str(partial), done + 1)
            except DataError:
                file.truncate(end)
                break
            done, end = done + 1, end + len(line)
    return done


def _key(prompt_id: str, sample: int) -> str:
    return f"{sample} {prompt_id}"
