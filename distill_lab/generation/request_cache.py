"""Cache of completed requests, shared by all of a user's runs: a model never answers the same request twice. Uses SQLite.

    with RequestCache(model, engine, on_note=print) as cache:
        keys = cache.keys(prompt, sampling)              one per sample
        found = cache.find(keys)                         key -> the completion's row, without id and sample
        cache.add([(key, completion)])

The key covers the messages, every sampling field except the number of samples, the sample's index, and everything the
model's answers depend on (`model_key`). The file is `requests.sqlite` in the folder DISTILL_LAB_CACHE (off: no cache), or
in the user's cache folder. Several processes on one machine may use it, and it survives a kill at any time; if it fails,
the user gets a note and the run continues without it. Network file systems lack the locks that SQLite needs: if the home
folder is on one, set DISTILL_LAB_CACHE to a folder on a local disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.errors import DataError
from distill_lab.files.cache_folder import VARIABLE, cache_folder, is_off
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import json_line, private
from distill_lab.generation.completions import checked_completion
from distill_lab.generation.model_identity import engine_settings, resolve_local_precision, shown_name, weights_of
from distill_lab.models.names import api_engine
from distill_lab.types import Completion, Fields, JsonObject, Prompt

FILE = "requests.sqlite"
VERSION = 2
"""Of the file: to be raised when the table, a completion's row, or the way prompts become tokens changes. Version 1 had a
checksum beside each answer."""
KEY_BYTES = 16
BUSY_S = 30.0
"""Seconds to wait while another process writes."""
MAX_KEYS = 500
"""Maximum keys per SELECT; old versions of SQLite allow at most 999."""
TABLE = """\
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, model TEXT NOT NULL, made REAL NOT NULL,
    answer BLOB NOT NULL)"""


def cache_path() -> Path:
    """Path of the cache file, which may not exist yet. Raises OSError for a user without a home folder."""
    return cache_folder() / FILE


def model_key(model: ModelConfig, engine: EngineConfig) -> tuple[str, bytes]:
    """A model's name for people, and a digest of everything its answers depend on.

    For a local model: `model_identity.weights_of` with the dtype and quantization it has here, and the requested engine
    (including `auto`), because engines differ in the last bits and therefore in occasional words. For a server's model:
    name, address and extra_body, because two servers may use the same name for different models. Raises ModelError if
    there is no such model.
    """
    if api_engine(model.model):
        url = engine.base_url or os.environ.get("OPENAI_BASE_URL", "").strip()
        settings = {"base_url": url and check_base_url(url), "extra_body": engine.recorded_fields}
        return model.model, _digest(fingerprint({"model": model.model_dump(), "engine": settings}).encode())
    parts = {"model": weights_of(resolve_local_precision(model, engine)), "engine": engine_settings(engine)}
    return shown_name(model), _digest(fingerprint(parts).encode())


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=KEY_BYTES).digest()


class RequestCache:
    """One model's answers in the user's cache. `on_note` receives notes about problems and about cached answers.

    A broken cache file is not an error: the cache disables itself (`on`). `add` may run in another thread than the rest.
    """

    def __init__(self, model: ModelConfig, engine: EngineConfig, *, on_note: Callable[[str], None]) -> None:
        self.on = not is_off()
        """Whether the cache is used."""
        self.num_asked = self.num_found = 0
        """Number of keys looked up, and number found."""
        self._model, self._engine, self._on_note = model, engine, on_note
        self._name, self._digest = "", b""
        self._path: Path | None = None
        self._file: CacheFile | None = None
        self._problem = ""

    def keys(self, prompt: Prompt, sampling: SamplingConfig) -> list[bytes]:
        """A key of KEY_BYTES for each sample of a prompt.

        Includes the prompt's id if random draws depend on it (`sampling.py`): for a local model above temperature 0.
        """
        drawn = sampling.temperature > 0 and not api_engine(self._model.model)
        parts = [
            prompt.messages,
            sampling.model_dump(exclude={"num_samples"} if sampling.from_model else {"num_samples", "from_model"}),
            prompt.id if drawn else None,
        ]
        request = json.dumps(parts, sort_keys=True).encode()
        return [_digest(b"%d %s" % (sample, request)) for sample in range(sampling.num_samples)]

    def identify(self) -> None:
        """Compute the model's digest; repeat after loading, which may fetch a newer commit."""
        self._name, self._digest = model_key(self._model, self._engine)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, JsonObject]:
        """Rows of cached completions by key, without id and sample. Raises ModelError."""
        if not self.on:
            return {}
        if not self._digest:
            self.identify()
        found: dict[bytes, JsonObject] = {}
        with self._guarded():
            self._path = self._path or cache_path()
            self._file = self._file or CacheFile(self._path)
            whole = {_digest(self._digest + key): key for key in keys}
            found = {whole[key]: row for key, row in self._file.read(list(whole)) if _is_answer(row)}
        self._report_problem()
        self.num_asked += len(keys)
        self.num_found += sum(key in found for key in keys)
        return found

    def add(self, answers: Iterable[tuple[bytes, Completion]]) -> None:
        """Store completions, except errors. Call `find` first."""
        if not self.on or self._file is None:
            return
        rows = []
        for key, completion in answers:
            if completion.finish_reason != "error":
                row = completion.to_json()
                del row["id"], row["sample"]
                row.pop("usage", None)  # paid by this run, not by those that find it here
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

    def _report_problem(self) -> None:
        if self._problem:
            self._on_note(
                f"the cache of answers ({self._path or VARIABLE}) is off from now on: {self._problem}; "
                f"`distill cache --clear` starts a new one, {VARIABLE} sets another folder"
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
        self._report_problem()
        if self.num_found:
            self._on_note(f"{self.num_found:,} of {self.num_asked:,} from the cache")


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """The number, size and age of one model's answers in the cache."""

    model: str
    num_answers: int
    num_bytes: int
    """Size of the answers; the file is slightly larger."""
    oldest: float
    newest: float
    """Seconds since 1970."""


class CacheFile:
    """The SQLite file. Every method raises sqlite3.DatabaseError if it is damaged, locked for too long or read-only."""

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises OSError if its folder cannot be created."""
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # sqlite would create it for everyone to read; its other files get the same permissions.
        os.close(private(str(path), os.O_RDWR | os.O_CREAT))
        # Opened in one thread and written in another, but never used by two at once.
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.text_factory = lambda text: text.decode(errors="replace")
        try:
            self._set_up()
        except sqlite3.DatabaseError:
            self._db.close()
            raise

    def _set_up(self) -> None:
        self._execute("PRAGMA journal_mode=WAL")
        self._execute("PRAGMA synchronous=NORMAL")  # a power failure may lose the last answers, never the file
        version = self._execute("PRAGMA user_version").fetchone()[0]
        if version == 1:
            with self._transaction():
                if self._execute("PRAGMA user_version").fetchone()[0] == 1:  # no other process was faster
                    self._execute("ALTER TABLE requests DROP COLUMN crc")
                    self._execute(f"PRAGMA user_version={VERSION}")
        elif version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"made by another version of the lab (format {version} instead of {VERSION})")
        if version == 0:
            with self._transaction():
                if self._execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] and not self._is_set_up():
                    raise sqlite3.OperationalError("this is the database of another program")
                self._execute(TABLE)
                self._execute(f"PRAGMA user_version={VERSION}")

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except UnicodeDecodeError:  # of a message that repeats what is in the damaged file
            raise sqlite3.DatabaseError("it is damaged") from None

    def _is_set_up(self) -> bool:
        """Whether another process has created the table in the meantime."""
        return self._execute("PRAGMA user_version").fetchone()[0] == VERSION

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise

    def read(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, JsonObject]]:
        """Yield key and row of the keys found, in any order. Damaged rows count as missing."""
        for start in range(0, len(keys), MAX_KEYS):
            part = keys[start : start + MAX_KEYS]
            marks = ",".join("?" * len(part))
            for key, answer in self._execute(f"SELECT key, answer FROM requests WHERE key IN ({marks})", part):
                if (row := _row(answer)) is not None:
                    yield key, row

    def write(self, model: str, rows: Iterable[tuple[bytes, JsonObject]]) -> None:
        """Store rows of `model`; a new row replaces one with the same key."""
        now = time.time()
        values = [(key, model, now, json_line(row)) for key, row in rows]
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO requests (key, model, made, answer) VALUES (?, ?, ?, ?)", values
            )

    def usage(self, where: str = "1", *values: float | str) -> list[ModelUsage]:
        """Usage by model, counting rows that meet an SQL condition."""
        columns = (
            "CAST(model AS TEXT), COUNT(*), CAST(SUM(LENGTH(answer)) AS INTEGER), CAST(MIN(made) AS REAL), "
            "CAST(MAX(made) AS REAL)"
        )
        found = self._execute(f"SELECT {columns} FROM requests WHERE {where} GROUP BY model ORDER BY model", values)
        return [ModelUsage(*row) for row in found]

    def remove_beyond(self, num_bytes: int) -> list[ModelUsage]:
        """Remove the oldest answers until the rest take at most `num_bytes`; return what was removed."""
        upto = "SELECT id, SUM(LENGTH(answer)) OVER (ORDER BY id DESC) AS upto FROM requests"
        return self._remove(f"id IN (SELECT id FROM ({upto}) WHERE upto > ?)", num_bytes)

    def remove_all(self) -> list[ModelUsage]:
        """Remove all answers; return what was removed."""
        return self._remove("1")

    def _remove(self, where: str, *values: float | str) -> list[ModelUsage]:
        with self._transaction():
            removed = self.usage(where, *values)
            self._execute(f"DELETE FROM requests WHERE {where}", values)
        return removed

    def shrink(self) -> None:
        """Return the space of removed answers to the disk. Temporarily needs as much space as the remaining answers."""
        self._execute("VACUUM")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def num_bytes(self) -> int:
        """Size of the file and of the files next to it while it is open."""
        return sum(path.stat().st_size for path in _files(self.path) if path.exists())

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> CacheFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _row(answer: str | bytes) -> JsonObject | None:
    """The JSON object that was stored; None if it is damaged."""
    try:
        row = json.loads(answer)
    except (ValueError, TypeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _is_answer(row: Fields) -> bool:
    """Whether a row is that of a completion without error; whatever else is in the file is not handed out."""
    try:
        completion = checked_completion({**row, "id": "", "sample": 0}, Path(FILE), 1)
    except DataError:
        return False
    return completion.finish_reason != "error"


def remove_file(path: Path) -> None:
    """Remove an unreadable cache file, and the files that SQLite put next to it."""
    for part in _files(path):
        part.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + ending) for ending in ("-wal", "-shm"))]
