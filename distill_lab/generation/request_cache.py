"""Completed requests, shared by all runs of a user: what a model answered once is not asked again. A sqlite file.

    with RequestCache(model, engine, on_note=print) as cache:
        keys = cache.keys(prompt, sampling)              one per sample
        found = cache.find(keys)                         key -> the completion's row, without id and sample
        cache.add([(key, completion)])

The key holds the messages, every sampling field but the number of samples, the sample's index, and what the answers of
the model depend on (`model_key`). The file is `requests.sqlite` in the folder DISTILL_LAB_CACHE (off: no cache), else in
the user's cache folder. It is made for several processes of one machine, and survives a kill at any time; what is wrong
with it is told, and the run goes on without it. Network file systems do not lock as sqlite needs it: set
DISTILL_LAB_CACHE to a folder of a local disk where the home folder is on one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.files.cache_folder import VARIABLE, cache_folder, is_off
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import json_line
from distill_lab.generation.model_identity import as_computed, engine_settings, shown_name, weights_of
from distill_lab.models.names import api_engine
from distill_lab.types import Completion, Prompt

FILE = "requests.sqlite"
VERSION = 1
"""Of the file and of the keys: to be raised when the table, a completion's row, or the way prompts become tokens changes."""
KEY_BYTES = 16
BUSY_S = 30.0
"""How long to wait for another process that writes."""
MAX_KEYS = 500
"""In one SELECT; old versions of sqlite take no more than 999."""
TABLE = """\
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, model TEXT NOT NULL, made REAL NOT NULL, crc INTEGER NOT NULL,
    answer BLOB NOT NULL)"""


def cache_path() -> Path:
    """The cache's file, there or not. Raises OSError for a user without a home folder."""
    return cache_folder() / FILE


def model_key(model: ModelConfig, engine: EngineConfig) -> tuple[str, bytes]:
    """A model's name for people, and a digest of all that its answers depend on.

    Of a model here what `identity.weights_of` says, with the dtype and quantization it has here, and the engine as it was
    asked for (`auto` is one of them): engines differ in the last bits, and so in a word here and there. A server's model:
    name, address and extra_body, for two servers may give one name to different models. Raises ModelError for a model
    that is not there.
    """
    if api_engine(model.model):
        url = engine.base_url or os.environ.get("OPENAI_BASE_URL", "").strip()
        settings = {"base_url": url and check_base_url(url), "extra_body": json.loads(engine.extra_body or "{}")}
        return model.model, _digest(fingerprint({"model": model.model_dump(), "engine": settings}).encode())
    parts = {"model": weights_of(as_computed(model, engine)), "engine": engine_settings(engine)}
    return shown_name(model), _digest(fingerprint(parts).encode())


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=KEY_BYTES).digest()


class RequestCache:
    """The answers of one model, in the user's cache. `on_note` hears what is wrong with it and what came from it.

    Wrong with the file is no error: the cache is off (`on`) from there. `add` may run in another thread than the rest.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig, *, on_note: Callable[[str], None]) -> None:
        self.on = not is_off()
        """Whether it is used."""
        self.num_asked = self.num_found = 0
        """Keys that were looked for, and how many of them were there."""
        self._model, self._engine, self._on_note = model, engine, on_note
        self._name, self._digest = "", b""
        self._place: Path | None = None
        self._file: CacheFile | None = None
        self._problem = ""

    def keys(self, prompt: Prompt, sampling: SamplingConfig) -> list[bytes]:
        """KEY_BYTES for each sample of a prompt.

        With the prompt's id where a draw depends on it (`sampling.py`): of a model that runs here, above temperature 0.
        """
        drawn = sampling.temperature > 0 and not api_engine(self._model.model)
        asked = [
            prompt.messages,
            sampling.model_dump(exclude={"num_samples"} if sampling.from_model else {"num_samples", "from_model"}),
            prompt.id if drawn else None,
        ]
        request = json.dumps(asked, sort_keys=True).encode()
        return [_digest(b"%d %s" % (sample, request)) for sample in range(sampling.num_samples)]

    def identify(self) -> None:
        """Look what the model is now; again once it is loaded, for loading may have brought a newer commit."""
        self._name, self._digest = model_key(self._model, self._engine)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
        """The completions' rows, without id and sample, of those `keys` that were answered. Raises ModelError."""
        if not self.on:
            return {}
        if not self._digest:
            self.identify()
        found: dict[bytes, dict[str, Any]] = {}
        with self._guarded():
            self._place = self._place or cache_path()
            self._file = self._file or CacheFile(self._place)
            whole = {_digest(self._digest + key): key for key in keys}
            found = {whole[key]: row for key, row in self._file.read(list(whole))}
        self._say_problem()
        self.num_asked += len(keys)
        self.num_found += sum(key in found for key in keys)
        return found

    def add(self, answers: Iterable[tuple[bytes, Completion]]) -> None:
        """Keep completions, those that are none of an error. To be called after `find`."""
        if not self.on or self._file is None:
            return
        rows = []
        for key, completion in answers:
            if completion.finish_reason != "error":
                row = completion.to_json()
                del row["id"], row["sample"]
                rows.append((_digest(self._digest + key), row))
        if rows:
            with self._guarded():
                self._file.write(self._name, rows)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            self.on, self._problem = False, str(error)

    def _say_problem(self) -> None:
        if self._problem:
            self._on_note(
                f"the cache of answers ({self._place or VARIABLE}) is not used from here on: {self._problem}; "
                f"`distill cache --clear` starts a new one, {VARIABLE} names another folder for it"
            )
            self._problem = ""

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with self._guarded():
                self._file.close()
            if self._file.num_damaged:
                self._on_note(f"{self._file.num_damaged} answers in the cache were damaged, and asked again")
        self._say_problem()
        if self.num_found:
            self._on_note(f"{self.num_found:,} of {self.num_asked:,} from the cache")


@dataclass(frozen=True, slots=True)
class Held:
    """What the cache holds, or held, of one model."""

    model: str
    num_answers: int
    num_bytes: int
    """Of the answers; the file is somewhat larger."""
    oldest: float
    newest: float
    """Seconds since 1970."""


class CacheFile:
    """The sqlite file. Every method raises sqlite3.DatabaseError where it is damaged, locked for long or read-only."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises OSError where its folder cannot be made."""
        self.path = path
        self.num_damaged = 0
        """Answers read so far whose checksum was wrong."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not used by two threads at once, but opened in one and written in another.
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._set_up()
        except sqlite3.DatabaseError:
            self._db.close()
            raise

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may take the last answers, never the file
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"made by another version of the lab (its format is {version}, not {VERSION})")
        if version == 0:
            with self._transaction():
                self._db.execute(TABLE)
                self._db.execute(f"PRAGMA user_version={VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise

    def read(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Key and row of those that are there, in any order. A row whose bytes were damaged counts as not there."""
        for start in range(0, len(keys), MAX_KEYS):
            part = keys[start : start + MAX_KEYS]
            marks = ",".join("?" * len(part))
            for key, crc, answer in self._db.execute(
                f"SELECT key, crc, answer FROM requests WHERE key IN ({marks})", part
            ):
                if zlib.crc32(answer) == crc:
                    yield key, json.loads(answer)
                else:
                    self.num_damaged += 1

    def write(self, model: str, rows: Iterable[tuple[bytes, dict[str, Any]]]) -> None:
        """Keep rows of `model`; a key that is there gets the new row."""
        now = time.time()
        values = []
        for key, row in rows:
            answer = json_line(row)
            values.append((key, model, now, zlib.crc32(answer), answer))
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO requests (key, model, made, crc, answer) VALUES (?, ?, ?, ?, ?)", values
            )

    def held(self, where: str = "1", *values: float | str) -> list[Held]:
        """What there is, by model, of rows that meet an SQL condition."""
        columns = "model, COUNT(*), SUM(LENGTH(answer)), MIN(made), MAX(made)"
        found = self._db.execute(f"SELECT {columns} FROM requests WHERE {where} GROUP BY model ORDER BY model", values)
        return [Held(*row) for row in found]

    def remove_older(self, days: float) -> list[Held]:
        """Remove answers that were made more than `days` ago; returns what they were."""
        return self._remove("made < ?", time.time() - days * 86400)

    def remove_model(self, model: str) -> list[Held]:
        """Remove the answers of one model, by the name that `held` gives it; returns what they were."""
        return self._remove("model = ?", model)

    def remove_beyond(self, num_bytes: int) -> list[Held]:
        """Remove the oldest answers until the others have no more than `num_bytes` together; returns what they were."""
        upto = "SELECT id, SUM(LENGTH(answer)) OVER (ORDER BY id DESC) AS upto FROM requests"
        return self._remove(f"id IN (SELECT id FROM ({upto}) WHERE upto > ?)", num_bytes)

    def remove_all(self) -> list[Held]:
        """Remove every answer; returns what they were."""
        return self._remove("1")

    def _remove(self, where: str, *values: float | str) -> list[Held]:
        with self._transaction():
            removed = self.held(where, *values)
            self._db.execute(f"DELETE FROM requests WHERE {where}", values)
        return removed

    def shrink(self) -> None:
        """Give the room of what was removed back to the disk. Takes as much room as what is left, for that time."""
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def num_bytes(self) -> int:
        """The size of the file and of what stands beside it while it is open."""
        return sum(path.stat().st_size for path in _files(self.path) if path.exists())

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def remove_file(path: Path) -> None:
    """Remove a cache that cannot be read, whatever it is, and what sqlite put beside it."""
    for part in _files(path):
        part.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + ending) for ending in ("-wal", "-shm"))]
