"""Prompts -> completions: generate what is missing in the completions file, and append each as soon as it is done.

    counts = generate(Path("prompts.jsonl"), Path("completions.jsonl"), lambda: load_engine(model, config), sampling)

It resumes after a kill: answers (prompt id, sample) in the file are never generated again, error completions are, and the
engine is loaded only if something is missing in both the file and the cache. Prompts of a large file stay on disk until they
are needed; memory holds a digest of each id and a few bytes.

An engine answers whole prompts: if only some samples of a prompt are missing, all are generated, and those already there
are dropped. After a kill this happens only for prompts that were in progress.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import overload

from distill_lab.config import SamplingConfig
from distill_lab.data.prompts import is_kept, read_prompts
from distill_lab.errors import UserError
from distill_lab.files.id_index import IdIndex
from distill_lab.files.jsonl import JsonlAppender, read_jsonl, whole_rows, write_jsonl
from distill_lab.files.outputs import writing
from distill_lab.generation.completions import checked_completion
from distill_lab.generation.engines import Engine, ServerEngine
from distill_lab.generation.progress import Progress, Tracker
from distill_lab.generation.request_cache import KEY_BYTES, RequestCache
from distill_lab.types import Completion, Counts, Fields, Prompt

LOOKUP_BATCH = 256
"""Prompts per cache lookup."""
MAX_WAITING = 2_000
"""Completions that may wait for the disk before the engine has to wait."""
MAX_REASONS, MAX_REASON = 5, 100
"""Maximum number of distinct errors in the counts, and maximum characters of each."""


def generate(
    prompts: Path,
    path: Path,
    engine: Callable[[], Engine],
    sampling: SamplingConfig,
    *,
    cache: RequestCache | None = None,
    paid: Sequence[Path] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_completion: Callable[[Completion], None] | None = None,
) -> Counts:
    """Fill `path` until it has `num_samples` completions of every prompt. Returns their number, and errors by reason.

    Each completion is written within moments, and the file is valid after a kill at any time; it may then contain both an
    error of an earlier execution and its replacement, until the next execution ends. Raises DataError for malformed rows
    and duplicate prompt ids, UserError if `path` contains completions of other prompts or cannot be written; it never
    loses what is in it. cache: searched first; stores the engine's answers. paid: other outputs of the same run, whose costs
    count toward engine.price.max_cost. on_progress: called at the start, now and
    then while the cache is read, when the engine reports, and after every completion. on_completion: called with each
    completion that the engine makes.
    """
    todo = _Todo(prompts, sampling.num_samples)
    with writing(path):
        todo.read(path)  # before anything is changed: it may be another kind of file
    remove_torn_line(path)
    tracker = Tracker(total=todo.total, done=todo.done, max_new_tokens=sampling.max_new_tokens, on_progress=on_progress)
    tracker.report()
    try:
        if cache is not None and todo.done < todo.total:
            with CompletionWriter(path, None) as writer:
                for found in _from_cache(cache, todo, sampling):
                    for completion in found:
                        todo.accept(completion)
                        writer.write(completion)
                    tracker.found(len(found))
        if todo.done < todo.total:
            loaded = engine()
            answering = loaded.for_output(path, paid) if isinstance(loaded, ServerEngine) else loaded
            if cache is not None and cache.on:
                cache.identify()
            tracker.started()
            with CompletionWriter(path, cache) as writer, tracker.listening():
                for completion in answering.generate(todo.missing(), sampling):
                    if todo.accept(completion):
                        writer.write(completion, todo.key(completion))
                        tracker.completed(completion.num_tokens)
                        if on_completion is not None:
                            on_completion(completion)
            if isinstance(answering, ServerEngine) and todo.done == todo.total:
                answering.finished()
    finally:
        if todo.twice:
            todo.keep_last(path)
    if todo.done < todo.total:
        raise UserError(
            f"the engine returned only {todo.done} of {todo.total} completions; run the same command again to resume"
        )
    return todo.counts()


def check_answered(counts: Counts, path: Path) -> None:
    """Raise UserError if there were prompts and every one of them failed: there is nothing to go on with."""
    if counts.rows_in and not counts.kept:
        reasons = ", ".join(counts.dropped)
        raise UserError(
            f"{path}: all {counts.rows_in} answers failed: {reasons}; fix the cause, then run the same command again to try "
            "them again"
        )


def _from_cache(cache: RequestCache, todo: _Todo, sampling: SamplingConfig) -> Iterator[list[Completion]]:
    """Yield missing completions that are in the cache, some prompts at a time; set the keys of all in `todo`."""
    prompts = iter(todo.missing())
    while cache.on and (batch := list(islice(prompts, LOOKUP_BATCH))):
        wanted = []
        for prompt in batch:
            keys = cache.keys(prompt, sampling)
            todo.set_keys(prompt.id, keys)
            wanted += [(prompt.id, index, key) for index, key in enumerate(keys) if todo.is_missing(prompt.id, index)]
        rows = cache.find([key for *_, key in wanted])
        yield [Completion.from_json({**rows[key], "id": id_, "sample": n}) for id_, n, key in wanted if key in rows]


class _File(JsonlAppender):
    """A JsonlAppender that raises UserError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        with writing(path):
            super().__init__(path)

    def append(self, rows: Iterable[Fields]) -> None:
        with writing(self.path):
            super().append(rows)

    def __exit__(self, *exc: object) -> None:
        with writing(self.path):
            super().__exit__(*exc)


def remove_torn_line(path: Path) -> None:
    """Remove a last line that a kill left incomplete; makes the file if there is none. Raises UserError if it cannot."""
    with _File(path):
        pass


class _Prompts(Sequence[Prompt]):
    """The prompts at these byte offsets of a file, read from disk on each access."""

    def __init__(self, path: Path, offsets: array[int]) -> None:
        self._path, self._offsets = path, offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Prompt]:
        with self._path.open("rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                yield Prompt.from_json(json.loads(file.readline()))

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> _Prompts: ...
    def __getitem__(self, index: int | slice) -> Prompt | _Prompts:
        if isinstance(index, slice):
            return _Prompts(self._path, self._offsets[index])
        return next(iter(_Prompts(self._path, array("Q", [self._offsets[index]]))))


MISSING, FAILED_BEFORE, FAILED, ANSWERED = range(4)
"""States of a sample. MISSING and FAILED_BEFORE (in an earlier execution) still need a completion."""


class _Todo:
    """All samples to generate, and the state of each."""

    def __init__(self, prompts: Path, num_samples: int) -> None:
        self._prompts, self._num_samples = prompts, num_samples
        self._numbers = IdIndex()
        self._offsets = array("Q")
        self._kept = list(read_prompts(prompts)) if is_kept(prompts) else None
        if self._kept is None:
            for prompt, offset in zip(read_prompts(prompts), _line_offsets(prompts), strict=True):
                self._numbers.add(prompt.id, len(self._offsets))
                self._offsets.append(offset)
        else:
            for number, prompt in enumerate(self._kept):
                self._numbers.add(prompt.id, number)
        self.total = len(self._numbers) * num_samples
        self.done = 0
        """Samples that need no (new) completion."""
        self.twice = False
        """Whether the file contains both an error and its replacement."""
        self._states, self._keys = bytearray(self.total), bytearray()
        self._reasons: dict[int, str] = {}

    def read(self, path: Path) -> None:
        """Load the completions file. Raises DataError for malformed rows, UserError for completions of other prompts."""
        for number, row in enumerate(whole_rows(path) if path.exists() else (), start=1):
            completion = checked_completion(row, path, number)
            index = self._index(completion.id, completion.sample)
            if index is None:
                raise UserError(
                    f"{path}:{number}: sample {completion.sample} of {completion.id!r} is not one of the "
                    f"{self._num_samples} samples of the given prompts; the file belongs to another generation: remove it "
                    "or choose another file"
                )
            self._note(index, completion, failed=FAILED_BEFORE)

    def accept(self, completion: Completion) -> bool:
        """Whether to write a new completion: True if there is none yet, or only an error of an earlier execution."""
        index = self._index(completion.id, completion.sample)
        assert index is not None, f"sample {completion.sample} of {completion.id!r} was not requested"
        if self._states[index] in (FAILED, ANSWERED):
            return False
        self._note(index, completion, failed=FAILED)
        return True

    def _note(self, index: int, completion: Completion, *, failed: int) -> None:
        self.twice |= self._states[index] != MISSING
        self.done -= self._states[index] == ANSWERED
        self._reasons.pop(index, None)
        if completion.finish_reason == "error":
            self._reasons[index] = _reason(completion.error)
        self._states[index] = failed if completion.finish_reason == "error" else ANSWERED
        self.done += self._states[index] in (FAILED, ANSWERED)

    def missing(self) -> Sequence[Prompt]:
        """Prompts that still need completions."""
        size = self._num_samples
        numbers = (n for n in range(len(self._numbers)) if min(self._states[n * size : (n + 1) * size]) < FAILED)
        if self._kept is not None:
            return [self._kept[number] for number in numbers]
        return _Prompts(self._prompts, array("Q", (self._offsets[number] for number in numbers)))

    def is_missing(self, prompt_id: str, sample: int) -> bool:
        """Whether this sample still needs a completion."""
        return self._states[self._number(prompt_id) * self._num_samples + sample] < FAILED

    def set_keys(self, prompt_id: str, keys: Sequence[bytes]) -> None:
        """Store the cache keys of a prompt's samples."""
        self._keys = self._keys or bytearray(KEY_BYTES * self.total)
        start = self._number(prompt_id) * self._num_samples * KEY_BYTES
        self._keys[start : start + len(keys) * KEY_BYTES] = b"".join(keys)

    def key(self, completion: Completion) -> bytes:
        """The cache key of a sample; empty if it was not set."""
        start = (self._number(completion.id) * self._num_samples + completion.sample) * KEY_BYTES
        return bytes(self._keys[start : start + KEY_BYTES])

    def keep_last(self, path: Path) -> None:
        """Remove rows from the file that later rows replace."""
        remove_torn_line(path)  # a full disk leaves one, too
        last = {self._index(row["id"], row["sample"]): number for number, row in enumerate(read_jsonl(path))}
        numbers = set(last.values())
        with writing(path):
            write_jsonl(path, (row for number, row in enumerate(read_jsonl(path)) if number in numbers))

    def counts(self) -> Counts:
        """Counts of the complete file."""
        reasons = Counter(self._reasons.values()).most_common()
        dropped = {f"error ({reason})": number for reason, number in reasons[:MAX_REASONS]}
        if len(reasons) > MAX_REASONS:
            dropped["other errors"] = sum(number for _, number in reasons[MAX_REASONS:])
        return Counts(self.total, self.total - len(self._reasons), dropped or {"error": 0})

    def _index(self, prompt_id: object, sample: object) -> int | None:
        if type(prompt_id) is not str or type(sample) is not int or not 0 <= sample < self._num_samples:
            return None
        number = self._numbers.get(prompt_id)
        return None if number is None else number * self._num_samples + sample

    def _number(self, prompt_id: str) -> int:
        number = self._numbers.get(prompt_id)
        assert number is not None, f"{prompt_id!r} is not among the prompts"
        return number


def _line_offsets(path: Path) -> Iterator[int]:
    """Byte offsets of the non-empty lines of a JSONL file."""
    position = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield position
            position += len(line)


def _reason(error: str | None) -> str:
    """An error's text with numbers (except HTTP status codes) replaced, so that equal errors count together."""
    text = re.sub(r"(?<!HTTP )\b\d+\b", "N", " ".join((error or "no reason given").split()))
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} [...]"


class CompletionWriter:
    """Appends completions in a separate thread, so that the model does not wait for the disk; batches flushes."""

    def __init__(self, path: Path, cache: RequestCache | None) -> None:
        self._path, self._cache = path, cache
        self._error: BaseException | None = None
        self._waiting: Queue[tuple[Completion, bytes] | None] = Queue(MAX_WAITING)
        self._thread = Thread(target=self._work, name="completions writer", daemon=True)

    def write(self, completion: Completion, key: bytes = b"") -> None:
        """Queue a completion and its cache key. Raises the error of an earlier write (a full disk)."""
        if self._error is not None:
            raise self._error
        self._waiting.put((completion, key))

    def _work(self) -> None:
        ended = False
        try:
            with _File(self._path) as file:
                while not ended:
                    waiting = [self._waiting.get()]
                    while not self._waiting.empty():
                        waiting.append(self._waiting.get())
                    ended = waiting[-1] is None
                    taken = [item for item in waiting if item is not None]
                    file.append([completion.to_json() for completion, _ in taken])
                    if self._cache is not None:
                        self._cache.add([(key, completion) for completion, key in taken if key])
        except BaseException as error:  # `write` and `__exit__` raise it again
            self._error = error
        while not ended:  # otherwise `write` could wait forever for space in the queue
            ended = self._waiting.get() is None

    def __enter__(self) -> CompletionWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error
