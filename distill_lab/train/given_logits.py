"""What another tool wrote of its teacher's probabilities, in JSON lines -> a cache that training reads, and back.

    found = import_logits(Path("logits.jsonl"), {0: [row], 1: [row]}, folder, num_ids=151_936, names=token_bytes(tokenizer))
    write_logits(cache, [[row], []], Path("logits.jsonl"))

A line belongs to a prompt, as EasyDistill 1.0 writes it: a list with an object `{"id": probability, ...}` for each token of
the teacher's text. Probabilities are at temperature 1; those that are not named are what is left of 1. The object's first id
is the token that was written (vLLM puts it there); in greedy texts it is also the most likely one.

The text is longer than the answer (EasyDistill goes on after the end token) or shorter (it was cut), may begin with white
space that the student's prompt has already, and may be another one than the answer that is trained. What the teacher says of
a token holds for an answer only as long as both have begun alike. So the tokens of both are compared, and after the first
one that differs nothing is known of the teacher.

Shapes: P loss positions of a row, K ids of a position, B = K + 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeGuard

import numpy as np

from distill_lab import activity
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import atomic_path
from distill_lab.models.token_bytes import vocabulary_digest
from distill_lab.run import fingerprint
from distill_lab.train.cache_format import decode_top_k, encode_top_k
from distill_lab.train.capture import SHARD_POSITIONS
from distill_lab.train.packing import Row
from distill_lab.train.teacher_cache import TABLE, CacheIdentity, TeacherCache, create

MAX_BLANKS = 3
"""Tokens of white space that a teacher's text may have before the answer."""
MAX_SUM = 1.01
"""Most that probabilities of one token may sum to: tools compute in half precision."""
TINY = 1e-7
"""Probability of an id that only fills a place."""

Said = tuple[list[int], list[float]]
"""Of one token of the teacher's text: ids and their probabilities, in the order of the file."""


@dataclass(frozen=True)
class Imported:
    """How much of the training rows a file has something on."""

    num_rows: int
    num_whole: int
    """Rows with the teacher's probabilities at every token that is trained."""
    num_begun: int
    """Rows with them up to where the answer is no longer the teacher's text."""
    num_positions: int
    num_known: int
    """Loss positions with the teacher's probabilities."""

    def __str__(self) -> str:
        rest = self.num_rows - self.num_whole - self.num_begun
        return (
            f"the teacher's probabilities at {self.num_known:,} of {self.num_positions:,} tokens: {self.num_whole:,} rows "
            f"whole, {self.num_begun:,} up to where the answer leaves the teacher's text, {rest:,} without any (trained on "
            "their answers alone)"
        )


def import_logits(
    path: Path,
    rows_of: Mapping[int, Sequence[Row]],
    folder: Path,
    *,
    num_lines: int,
    num_ids: int,
    names: Mapping[int, bytes],
    max_ids: int | None = None,
) -> Imported:
    """Make, or complete, the cache in `folder` for all rows of `rows_of` (line of the file, from 0 -> its rows).

    num_lines: prompts that the file is about. num_ids: rows of the student's head; probability of ids beyond is left out
    and the rest renormalized. names: the student's `token_bytes`. max_ids: of each token, take at most so many. Raises
    DataError naming a malformed line, UserError if the file has more lines than prompts, or nothing for any row.
    """
    rows = [row for line in sorted(rows_of) for row in rows_of[line]]
    size = min(_most_ids(path), num_ids - 1, max_ids or num_ids, 254)
    identity = CacheIdentity(
        mode="top_k", size=size, temperature=1.0, seed=0, num_ids=num_ids, teacher=fingerprint(path),
        tokenizer=vocabulary_digest(names), name=path.name,
    )  # fmt: skip
    cache = create(folder, identity, rows)
    writer = _Writer(cache, {row.id for row in cache.missing(rows)})
    blank = {id for id, name in names.items() if not name.strip()}
    left = dict(rows_of)
    known: list[tuple[int, int]] = []
    number = -1
    for number, line in enumerate(_lines(path)):
        if number >= num_lines:
            raise UserError(
                f"{path} has more lines than there are prompts ({num_lines:,}); EasyDistill appends to the file whenever it "
                "runs. Keep the lines of one run"
            )
        activity.report("reading the teacher's probabilities, row", number + 1, num_lines)
        wanted = left.pop(number, ())
        said = read_line(line, str(path), number + 1) if wanted else []
        for row in wanted:
            offset, length = aligned(row, said, blank)
            known.append((length, int(row.loss_mask.sum())))
            writer.add(row, said[offset : offset + length])
    for rest in left.values():  # lines that the file does not have
        for row in rest:
            known.append((0, int(row.loss_mask.sum())))
            writer.add(row, [])
    writer.close()
    found = Imported(
        len(known),
        sum(length == total for length, total in known),
        sum(0 < length < total for length, total in known),
        sum(total for _, total in known),
        sum(length for length, _ in known),
    )
    if not found.num_known:
        raise UserError(
            f"{path}: not one of {len(known):,} answers begins as the teacher's text does in this file ({number + 1:,} "
            "lines); it belongs to other prompts, or to a teacher with another tokenizer"
        )
    return found


def aligned(row: Row, said: Sequence[Said], blank: set[int]) -> tuple[int, int]:
    """How many tokens of the teacher's text to pass over, and at how many loss positions from the first on it holds.

    blank: ids of white space. (0, 0) if answer and text begin differently.
    """
    places = np.flatnonzero(row.loss_mask)
    if not len(places) or not said:
        return 0, 0
    run = int((places == places[0] + np.arange(len(places))).sum())  # a second turn is not the teacher's text
    labels = row.target[places[:run]]
    best = (0, 0)
    written = np.array([ids[0] for ids, _ in said])
    likely = np.array([ids[int(np.argmax(shares))] for ids, shares in said])
    for text in (written, likely):
        for offset in range(min(MAX_BLANKS, len(text) - 1) + 1):
            if offset and text[offset - 1] not in blank:
                break
            length = min(run, len(text) - offset)
            other = np.flatnonzero(text[offset : offset + length] != labels[:length])
            common = int(other[0]) if len(other) else length
            if common > best[1]:
                best = (offset, common)
    offset, common = best
    # Where both part, they have still begun alike.
    return (offset, min(common + 1, run, len(said) - offset)) if common else (0, 0)


def write_logits(cache: TeacherCache, rows_of: Sequence[Sequence[Row]], path: Path) -> None:
    """The lines that `import_logits` reads, of a cache of most likely ids: one for each item, of its first row.

    An item without rows becomes an empty list. A label that is not among the likely ids gets the most that it can have.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for rows in rows_of:
            file.write(json.dumps(_said(cache, rows[0]) if rows else []) + "\n")


def _said(cache: TeacherCache, row: Row) -> list[dict[int, float]]:
    found = cache.read([row.id])
    ids_PK, log_p_PB = decode_top_k(
        found.data, found.starts_R, found.ends_R, found.positions_R, cache.identity.size, cache.vocabulary
    )
    line = []
    for label, ids, log_p in zip(row.target[row.loss_mask].tolist(), ids_PK.tolist(), log_p_PB, strict=True):
        shares = np.exp(log_p).tolist()
        named = sorted(zip(ids, shares[:-1], strict=True), key=lambda each: (each[0] != label, -each[1]))
        first = [] if named[0][0] == label else [(label, min(shares))]
        line.append({id: float(f"{share:.4g}") for id, share in (*first, *named)})
    return line


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the file with the teacher's probabilities") from None


def _most_ids(path: Path) -> int:
    """Ids of the token that has most of them, in the first line that has tokens."""
    for number, line in enumerate(_lines(path), start=1):
        if said := read_line(line, str(path), number):
            return max(len(ids) for ids, _ in said)
    raise UserError(f"{path}: no line has a token; give the file with the teacher's probabilities")


def read_line(line: bytes, source: str, number: int) -> list[Said]:
    """What a line says, token by token. Raises DataError for anything but lists of objects with probabilities."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(source, number, f"not JSON ({error})") from None
    if not isinstance(row, list):
        raise DataError(source, number, f"expected a list with an object for each token, found {type(row).__name__}")
    said = []
    for place, entry in enumerate(row):
        if not isinstance(entry, dict) or not entry:
            raise DataError(source, number, f'token {place}: expected {{"id": probability, ...}}, found {entry!r:.60}')
        for id, share in entry.items():
            if not (id.isascii() and id.isdigit()):
                raise DataError(source, number, f"token {place}: {id!r:.60} is not a token id")
            if not _is_share(share):
                reason = f"token {place}: {share!r:.60} of id {id} is not a probability between 0 and 1"
                raise DataError(source, number, f"{reason}; EasyDistill writes exp(log-probability)")
        ids, shares = [int(id) for id in entry], list(entry.values())
        if sum(shares) > MAX_SUM:
            raise DataError(source, number, f"token {place}: the probabilities sum to {sum(shares):.3g}")
        said.append((ids, shares))
    return said


def _is_share(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_SUM


class _Writer:
    """Rows into shards of a cache."""

    def __init__(self, cache: TeacherCache, missing: set[bytes]) -> None:
        self.cache, self._missing = cache, missing
        self._entries: list[np.ndarray] = []
        self._parts: list[bytes] = []
        self._positions = 0

    def add(self, row: Row, said: Sequence[Said]) -> None:
        """Write what is known of the row's first positions, unless the cache has the row."""
        if row.id not in self._missing:
            return
        self._missing.discard(row.id)
        identity = self.cache.identity
        labels = row.target[row.loss_mask].tolist()
        ids_PK = np.tile(np.arange(identity.size), (len(labels), 1))
        log_p_PB = np.full((len(labels), identity.size + 1), np.nan)
        sums = [0.0, 0.0]
        for place, each in enumerate(said):
            if (named := _named(each, identity.size, identity.num_ids)) is None:
                continue
            ids_PK[place], log_p = named
            log_p_PB[place] = log_p
            here = np.flatnonzero(ids_PK[place] == labels[place])
            sums[0] += float(log_p[here[0]] if len(here) else log_p[-1])
            sums[1] -= float((np.exp(log_p) * log_p).sum())
        entry = np.zeros(1, TABLE)
        entry["id"], entry["positions"] = np.frombuffer(row.id, "<u8"), len(labels)
        entry["offset"] = sum(map(len, self._parts))
        entry["log_p"], entry["entropy"] = sums
        self._entries.append(entry)
        self._parts.append(encode_top_k(ids_PK, log_p_PB, self.cache.vocabulary))
        self._positions += len(labels)
        if self._positions >= SHARD_POSITIONS:
            self.close()

    def close(self) -> None:
        """Write the last shard."""
        if self._entries:
            self.cache.add_shard(np.concatenate(self._entries), b"".join(self._parts))
        self._entries, self._parts, self._positions = [], [], 0


def _named(said: Said, size: int, num_ids: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`size` distinct ids below `num_ids`, and logarithms of their probabilities and of all others'; None if no id is."""
    known = sorted(((id, share) for id, share in zip(*said, strict=True) if id < num_ids), key=lambda each: -each[1])
    if not any(share for _, share in known):
        return None
    rest = max(0.0, 1 - sum(said[1])) + sum(share for _, share in known[size:])
    taken = {id for id, _ in known}
    filling = ((id, TINY) for id in range(num_ids) if id not in taken)
    ids, shares = zip(*islice(chain(known[:size], filling), size), strict=True)
    log_p = np.log(np.maximum([*shares, rest], TINY))
    return np.array(ids), log_p - np.log(np.exp(log_p).sum())
