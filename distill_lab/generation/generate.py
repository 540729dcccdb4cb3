"""Prompts -> completions: what is missing in the completions file is generated and appended as soon as it is done.

    counts = generate(Path("prompts.jsonl"), Path("completions.jsonl"), lambda: load_engine(model, config), sampling)

Run it again after a kill and it goes on: an answer (prompt id, sample) that stands in the file is never asked for again,
an error completion is, and the engine is only loaded where something is missing that the cache does not have either.
Prompts stay on disk until they are asked; what is kept in memory is their ids, a few bytes each.

An engine answers whole prompts: where some samples of a prompt are there and others are not, all are made, and those
that were there are dropped. After a kill that concerns the prompts that were under way, no more.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any, overload

from distill_lab.config import SamplingConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import JsonlAppender, read_jsonl, whole_rows, write_jsonl
from distill_lab.files.outputs import writing
from distill_lab.generation.engines import Engine
from distill_lab.generation.progress import Progress, Tracker
from distill_lab.generation.request_cache import KEY_BYTES, RequestCache
from distill_lab.types import Completion, Counts, Prompt

LOOKED_UP = 256
"""Prompts that are looked up in the cache together."""
MAX_WAITING = 2_000
"""Completions that may wait for the disk before the engine does."""
MAX_REASONS, MAX_REASON = 5, 100
"""Kinds of errors the counts tell apart, and how many characters of each."""


def generate(
    prompts: Path,
    path: Path,
    engine: Callable[[], Engine],
    sampling: SamplingConfig,
    *,
    cache: RequestCache | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Counts:
    """Complete `path` to `num_samples` completions of every prompt. Returns how many it holds, errors by reason.

    A completion is on disk within moments of its end, and the file is valid after a kill at any time; then, an error of
    an earlier execution may stand in it beside what replaces it, until the next one ends. Raises DataError for malformed
    rows and prompt ids that occur twice, UserError where `path` holds completions of other prompts or cannot be written;
    what is in it stays. cache: is asked first, and keeps the answers of the engine.
    on_progress: called at the start, now and then while the cache is read, as the engine reports, and after every
    completion.
    """
    todo = _Todo(prompts, sampling.num_samples)
    with writing(path):
        todo.read(path)  # before the first byte is touched: it may be another file
    with _File(path):  # cuts off a line torn by a kill
        pass
    tracker = Tracker(total=todo.total, done=todo.done, max_new_tokens=sampling.max_new_tokens, on_progress=on_progress)
    tracker.report()
    try:
        if cache is not None and todo.done < todo.total:
            with _Writer(path, None) as writer:
                for found in _from_cache(cache, todo, sampling):
                    for completion in found:
                        todo.take(completion)
                        writer.write(completion)
                    tracker.found(len(found))
        if todo.done < todo.total:
            answering = engine()
            if cache is not None and cache.on:
                cache.identify()
            tracker.started()
            with _Writer(path, cache) as writer, tracker.listening():
                for completion in answering.generate(todo.missing(), sampling):
                    if todo.take(completion):
                        writer.write(completion, todo.key(completion))
                        tracker.completed(completion.num_tokens)
    finally:
        if todo.twice:
            todo.keep_last(path)
    if todo.done < todo.total:
        raise UserError(f"the engine returned {todo.done} of {todo.total} completions; run the same command to go on")
    return todo.counts()


def _from_cache(cache: RequestCache, todo: _Todo, sampling: SamplingConfig) -> Iterator[list[Completion]]:
    """What the cache has of what is missing, some prompts at a time; `todo` gets the keys of all."""
    prompts = iter(todo.missing())
    while cache.on and (batch := list(islice(prompts, LOOKED_UP))):
        asked = []
        for prompt in batch:
            keys = cache.keys(prompt, sampling)
            todo.set_keys(prompt.id, keys)
            asked += [(prompt.id, sample, key) for sample, key in enumerate(keys) if todo.is_missing(prompt.id, sample)]
        rows = cache.find([key for *_, key in asked])
        yield [Completion.from_json({**rows[key], "id": id_, "sample": n}) for id_, n, key in asked if key in rows]


class _File(JsonlAppender):
    """As its base, but raises UserErrors for what goes wrong."""

    def __init__(self, path: Path) -> None:
        with writing(path):
            super().__init__(path)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with writing(self.path):
            super().append(rows)

    def __exit__(self, *exc: object) -> None:
        with writing(self.path):
            super().__exit__(*exc)


class _Prompts(Sequence[Prompt]):
    """The prompts that begin at these bytes of a file, read whenever they are asked for."""

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
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> _Prompts: ...
    def __getitem__(self, place: int | slice) -> Prompt | _Prompts:
        if isinstance(place, slice):
            return _Prompts(self._path, self._offsets[place])
        return next(iter(_Prompts(self._path, array("Q", [self._offsets[place]]))))


MISSING, FAILED_BEFORE, FAILED, ANSWERED = range(4)
"""States of a sample. Missing and failed in an earlier execution: to be asked."""


class _Todo:
    """Every sample that there is to be, and how far it is."""

    def __init__(self, prompts: Path, num_samples: int) -> None:
        self._prompts, self._num_samples = prompts, num_samples
        self._places: dict[str, int] = {}
        self._offsets = array("Q")
        for prompt, offset in zip(read_prompts(prompts), _line_offsets(prompts), strict=True):
            self._places[prompt.id] = len(self._offsets)
            self._offsets.append(offset)
        self.total = len(self._offsets) * num_samples
        self.done = 0
        """Samples that are not to be asked (again)."""
        self.twice = False
        """Whether an error and what replaces it both stand in the file."""
        self._states, self._keys = bytearray(self.total), bytearray()
        self._reasons: dict[int, str] = {}

    def read(self, path: Path) -> None:
        """Take over what stands in the completions file. Raises DataError, UserError for completions of other prompts."""
        for number, row in enumerate(whole_rows(path) if path.exists() else (), start=1):
            try:
                completion = Completion.from_json(row)
            except KeyError as error:
                raise DataError(str(path), number, f"a completion needs the field {error.args[0]!r}") from None
            index = self._index(completion.id, completion.sample)
            if index is None:
                raise UserError(
                    f"{path}:{number}: sample {completion.sample} of {completion.id!r} is none of the "
                    f"{self._num_samples} samples of the prompts given; the file is of another generation: remove it or "
                    "write to another one"
                )
            self._note(index, completion, failed=FAILED_BEFORE)

    def take(self, completion: Completion) -> bool:
        """Whether a new completion is one to be written: there is none yet, or an error of an earlier execution."""
        index = self._index(completion.id, completion.sample)
        assert index is not None, f"no one asked for sample {completion.sample} of {completion.id!r}"
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

    def missing(self) -> _Prompts:
        """The prompts that the engine is to be asked."""
        size = self._num_samples
        places = (n for n in range(len(self._offsets)) if min(self._states[n * size : (n + 1) * size]) < FAILED)
        return _Prompts(self._prompts, array("Q", (self._offsets[place] for place in places)))

    def is_missing(self, prompt_id: str, sample: int) -> bool:
        """Whether this sample is to be asked."""
        return self._states[self._places[prompt_id] * self._num_samples + sample] < FAILED

    def set_keys(self, prompt_id: str, keys: Sequence[bytes]) -> None:
        """Remember the cache's keys of a prompt."""
        self._keys = self._keys or bytearray(KEY_BYTES * self.total)
        start = self._places[prompt_id] * self._num_samples * KEY_BYTES
        self._keys[start : start + len(keys) * KEY_BYTES] = b"".join(keys)

    def key(self, completion: Completion) -> bytes:
        """The cache's key of a sample; empty where it was not set."""
        start = (self._places[completion.id] * self._num_samples + completion.sample) * KEY_BYTES
        return bytes(self._keys[start : start + KEY_BYTES])

    def keep_last(self, path: Path) -> None:
        """Take from the file what something later in it replaces."""
        with _File(path):  # a full disk leaves a torn line
            pass
        last = {self._index(row["id"], row["sample"]): number for number, row in enumerate(read_jsonl(path))}
        numbers = set(last.values())
        with writing(path):
            write_jsonl(path, (row for number, row in enumerate(read_jsonl(path)) if number in numbers))

    def counts(self) -> Counts:
        """What the file holds once all is done."""
        reasons = Counter(self._reasons.values()).most_common()
        dropped = {f"error ({reason})": number for reason, number in reasons[:MAX_REASONS]}
        if len(reasons) > MAX_REASONS:
            dropped["other errors"] = sum(number for _, number in reasons[MAX_REASONS:])
        return Counts(self.total, self.total - len(self._reasons), dropped or {"error": 0})

    def _index(self, prompt_id: Any, sample: Any) -> int | None:
        if type(prompt_id) is not str or type(sample) is not int or prompt_id not in self._places:
            return None
        return self._places[prompt_id] * self._num_samples + sample if 0 <= sample < self._num_samples else None


def _line_offsets(path: Path) -> Iterator[int]:
    """Where the lines of a JSONL file begin, empty ones left out."""
    position = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield position
            position += len(line)


def _reason(error: str | None) -> str:
    """An error's text without the numbers that make it another one for each prompt; a status says what went wrong."""
    text = re.sub(r"(?<!HTTP )\b\d+\b", "N", " ".join((error or "no reason given").split()))
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} [...]"


class _Writer:
    """Appends completions in a thread of its own: the model does not wait for the disk, those that wait share a flush."""

    def __init__(self, path: Path, cache: RequestCache | None) -> None:
        self._path, self._cache = path, cache
        self._error: BaseException | None = None
        self._waiting: Queue[tuple[Completion, bytes] | None] = Queue(MAX_WAITING)
        self._thread = Thread(target=self._work, name="completions writer", daemon=True)

    def write(self, completion: Completion, key: bytes = b"") -> None:
        """Hand over a completion, and its key for the cache. Raises what an earlier one ran into (a full disk)."""
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
        except BaseException as error:  # `write` and the end raise it again
            self._error = error
        while not ended:  # or who writes would wait for room for ever
            ended = self._waiting.get() is None

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error
