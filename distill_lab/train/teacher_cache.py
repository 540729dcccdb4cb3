"""The teacher's distributions on disk: training rows -> what was captured of the teacher at their loss positions.

    cache = TeacherCache.open(folder, identity)
    cache.missing(rows)                              the rows to capture first (`capture.py`)
    cache.read(row_ids)                              Counts, or top-k, or hidden states, row by row

A row is found by the digest of its tokens and its loss mask (`packing.Row.id`), so students, subsets, orders, epochs and
splits all find it, and a later capture adds only what is missing. A folder holds one teacher's distributions, captured in
one way; index.json says which, and anything else is refused by name.

    index.json    CacheIdentity and the digest of ranks.npy
    ranks.npy     int32, [V]: ids from the most to the least frequent in the first capture's rows
    00000.kd ...  a header, a table of rows (digest, place, loss positions, sums of log p(label) and of the entropy), the
                  rows' bytes (`cache_format.py`); with a CRC-32 of both. A shard appears whole or not at all
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from distill_lab.errors import UserError
from distill_lab.train.cache_format import PAD, Vocabulary
from distill_lab.train.packing import Row

FORMAT = 1
INDEX, RANKS, SHARDS = "index.json", "ranks.npy", "[0-9]*.kd"
MAGIC = b"KDSHARD1"
HEADER = np.dtype(
    [("magic", "S8"), ("rows", "<u4"), ("table_crc", "<u4"), ("body_bytes", "<u8"), ("body_crc", "<u4"), ("pad", "<u4")]
)
TABLE = np.dtype([("id", "<u8"), ("offset", "<u4"), ("positions", "<u4"), ("log_p", "<f4"), ("entropy", "<f4")])
"""One row: its digest, where its bytes begin, its loss positions, and two sums over them in nats."""


@dataclass(frozen=True)
class CacheIdentity:
    """What a cache's distributions depend on."""

    mode: str
    """sampled, top_k or hidden."""
    size: int
    """Draws of a position, or its most likely ids; 0 for hidden states."""
    temperature: float
    """The teacher's logits were divided by it; 1 for hidden states, which serve any."""
    seed: int
    num_ids: int
    """Rows of the teacher's head."""
    teacher: str
    """Digest of its weights, precision and settings (`model_identity.weights_of`)."""
    tokenizer: str
    """Digest of what its ids stand for (`token_bytes.vocabulary_digest`)."""
    name: str = field(default="", compare=False)
    """The teacher's name, for people."""

    def digest(self) -> str:
        """16 characters that stand for all of it but the name."""
        known = {name: value for name, value in asdict(self).items() if name != "name"}
        return blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


WHAT = {
    "mode": "captured as {}, not as {}",
    "size": "captured with size {}, not {}",
    "temperature": "captured at temperature {}, not {}",
    "seed": "drawn with seed {}, not {}",
    "num_ids": "of a teacher whose head has {} rows, not {}",
    "teacher": "of another teacher, or of another revision or precision of it (digest {}, not {})",
    "tokenizer": "of a teacher with another tokenizer (digest {}, not {})",
}
"""How each field of an identity that differs is said."""


@dataclass(frozen=True)
class Found:
    """The stored bytes of some rows, one after the other."""

    data: np.ndarray
    """uint8, with PAD bytes at its end."""
    starts_R: np.ndarray
    ends_R: np.ndarray
    positions_R: np.ndarray
    """Loss positions of each row."""
    log_p_R: np.ndarray
    """Sum over them of log p(label), in nats."""
    entropy_R: np.ndarray
    """Sum over them of the teacher's entropy, in nats."""


class TeacherCache:
    """A folder of captured distributions, open for reading; `add_shard` makes it larger."""

    def __init__(self, folder: Path, identity: CacheIdentity, vocabulary: Vocabulary) -> None:
        self.folder, self.identity, self.vocabulary = folder, identity, vocabulary
        self._tables: list[np.ndarray] = []
        self._shards: list[Path] = []
        self._bodies: dict[int, np.ndarray] = {}
        self._ids = np.zeros(0, np.uint64)
        for path in sorted(folder.glob(SHARDS)):
            self._tables.append(_read_table(path))
            self._shards.append(path)
        self._sort()

    @classmethod
    def open(cls, folder: Path, identity: CacheIdentity | None = None) -> TeacherCache:
        """Open an existing cache. Raises UserError if there is none, if it is damaged, or if it is not of `identity`."""
        path = folder / INDEX
        if not path.is_file():
            raise UserError(f"{folder}: no teacher cache ({INDEX} is missing); capture one with `distill logits`")
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            version, digest = index.pop("format"), index.pop("ranks")
            found = CacheIdentity(**index)
            ranks = np.load(folder / RANKS, allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}: {INDEX} or {RANKS} cannot be read ({error}); {_remove(folder)}") from None
        if version != FORMAT:
            raise UserError(
                f"{folder}: format {version} of a teacher cache; this version reads {FORMAT}; {_remove(folder)}"
            )
        if ranks_digest(ranks) != digest or len(ranks) != found.num_ids:
            raise UserError(f"{folder / RANKS} is not what was written; {_remove(folder)}")
        if identity is not None:
            refuse_other(folder, found, identity)
        return cls(folder, found, Vocabulary.of_ranks(ranks))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_positions(self) -> int:
        """Loss positions of all rows."""
        return sum(int(table["positions"].sum()) for table in self._tables)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(path.stat().st_size for path in self._shards)

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are not in the cache, each once, in their order."""
        seen: set[bytes] = set()
        first = [row for row in rows if not ((key := row.id) in seen or seen.add(key))]
        there = self._places([row.id for row in first]) >= 0
        return [row for row, known in zip(first, there, strict=True) if not known]

    def read(self, row_ids: Sequence[bytes]) -> Found:
        """The bytes of these rows. Raises UserError naming how many are not in the cache, or a shard that is damaged."""
        places = self._places(row_ids)
        if (places < 0).any():
            raise UserError(
                f"{self.folder}: {int((places < 0).sum())} of {len(row_ids)} rows are not in this teacher cache, the first "
                f"of them {row_ids[int((places < 0).argmax())].hex()}; capture them first (train in one process once)"
            )
        shards, lines = self._shard_of[places], self._line_of[places]
        pieces, entries = [], np.empty(len(places), TABLE)
        for number, (shard, line) in enumerate(zip(shards.tolist(), lines.tolist(), strict=True)):
            table, body = self._tables[shard], self._body(shard)
            end = table["offset"][line + 1] if line + 1 < len(table) else len(body)
            pieces.append(body[table["offset"][line] : end])
            entries[number] = table[line]
        ends_R = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        return Found(
            np.concatenate([*pieces, np.zeros(PAD, np.uint8)]),
            ends_R - np.array([len(piece) for piece in pieces], np.int64),
            ends_R,
            entries["positions"].astype(np.int64),
            entries["log_p"],
            entries["entropy"],
        )

    def check(self) -> list[str]:
        """Read everything; what is damaged, as sentences."""
        damage = []
        for number in range(len(self._shards)):
            try:
                self._body(number)
            except UserError as error:
                damage.append(str(error))
            self._bodies.clear()
        return damage

    def add_shard(self, entries: np.ndarray, body: bytes) -> None:
        """Write rows as the next shard, whole or not at all. entries: as TABLE."""
        from distill_lab.files.jsonl import atomic_path

        used = {path.name for path in self._shards}
        name = next(name for number in range(len(used) + 1) if (name := f"{number:05}.kd") not in used)
        header = np.zeros((), HEADER)
        header["magic"], header["rows"], header["body_bytes"] = MAGIC, len(entries), len(body)
        header["table_crc"], header["body_crc"] = zlib.crc32(entries.tobytes()), zlib.crc32(body)
        with atomic_path(self.folder / name) as temporary:
            temporary.write_bytes(header.tobytes() + entries.tobytes() + body)
        self._shards.append(self.folder / name)
        self._tables.append(entries)
        self._sort()

    def _sort(self) -> None:
        """The rows of all shards by their digests."""
        sizes = [len(table) for table in self._tables]
        ids = np.concatenate([table["id"] for table in self._tables]) if sizes else np.zeros(0, np.uint64)
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._line_of = np.concatenate([np.arange(size) for size in sizes] or [np.zeros(0, np.int64)])[order]

    def _places(self, row_ids: Sequence[bytes]) -> np.ndarray:
        """Where in the sorted rows each is; -1: nowhere."""
        wanted = np.frombuffer(b"".join(row_ids), "<u8")
        if not len(self._ids):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where(self._ids[places] == wanted, places, -1)

    def _body(self, shard: int) -> np.ndarray:
        """The bytes of a shard's rows, mapped from the disk; checked the first time."""
        if shard not in self._bodies:
            path, start = self._shards[shard], HEADER.itemsize + self._tables[shard].nbytes
            header = np.fromfile(path, HEADER, 1)[0]
            empty = not header["body_bytes"]
            body = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r", offset=start)
            if len(body) != header["body_bytes"] or zlib.crc32(body.data) != header["body_crc"]:
                raise UserError(f"{path} is not what was written; remove it, and its rows will be captured again")
            self._bodies[shard] = body
        return self._bodies[shard]


def create(folder: Path, identity: CacheIdentity, rows: Sequence[Row]) -> TeacherCache:
    """Open the cache in `folder`, or make an empty one whose ranks come from the tokens of `rows`.

    Raises UserError as `TeacherCache.open`, and for a folder that holds something else.
    """
    from distill_lab.files.jsonl import atomic_path, write_json

    if not (folder / INDEX).is_file():
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        # A kill may have left the ranks, and hidden temporary files.
        if others := [name for name in names if name != RANKS and not name.startswith(".")]:
            raise UserError(f"{folder} is not a teacher cache: it holds {min(others)}; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        ids = np.concatenate(
            [np.zeros(0, np.int32), *(part for row in rows for part in (row.input_ids, row.target[-1:]))]
        )
        counts_V = np.bincount(ids[ids < identity.num_ids], minlength=identity.num_ids)
        ranks = Vocabulary.by_frequency(counts_V).id_of
        with atomic_path(folder / RANKS) as temporary, temporary.open("wb") as file:
            np.save(file, ranks)
        # Last: without it nothing counts as a cache.
        write_json(folder / INDEX, {"format": FORMAT, "ranks": ranks_digest(ranks), **asdict(identity)})
    return TeacherCache.open(folder, identity)


def refuse_other(folder: Path, found: CacheIdentity, wanted: CacheIdentity) -> None:
    """Raise UserError, naming what differs, unless the cache in `folder` is the wanted one."""
    left, right = asdict(found), asdict(wanted)
    other = [WHAT[name].format(left[name], right[name]) for name in WHAT if left[name] != right[name]]
    if other:
        raise UserError(
            f"{folder} is another teacher cache: it is {'; it is '.join(other)}. It was captured from {found.name}; choose "
            "another folder (--train.teacher-cache.folder), or the settings it was captured with"
        )


def ranks_digest(ranks: np.ndarray) -> str:
    """Identifies the table of ranks."""
    return blake2b(ranks.astype("<i4").tobytes(), digest_size=8).hexdigest()


def _read_table(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        raw = file.read(HEADER.itemsize)
        header = np.frombuffer(raw, HEADER)[0] if len(raw) == HEADER.itemsize else None
        if header is not None and header["magic"] == MAGIC:
            table = file.read(int(header["rows"]) * TABLE.itemsize)
            size = HEADER.itemsize + len(table) + int(header["body_bytes"])
            if zlib.crc32(table) == header["table_crc"] and path.stat().st_size == size:
                return np.frombuffer(table, TABLE)
    raise UserError(f"{path} is not a whole shard of a teacher cache; remove it, and its rows will be captured again")


def _remove(folder: Path) -> str:
    return f"remove the folder {folder} to capture again"
