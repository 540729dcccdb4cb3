"""Fill a teacher cache: training rows and a live teacher -> shards of what the teacher says at their loss positions.

    captured = capture(teacher, rows, cache, tokens_per_batch=8192, on_log=print)

Shapes: C positions of a chunk, V ids, N draws of a position, B bins, W width.

Draws are systematic, not independent: one uniform number u per position, and N points (u + i) / N at equal distances in the
cumulated probabilities. Every id then has floor or ceil of N * p draws, its mean is still N * p, and the squared error is 3
to 18 times smaller than that of independent draws of the same number (Anshumann et al. 2025, "Sparse Logit Sampling", draw
independently; systematic sampling: Madow and Madow 1944).

The same rows give the same bytes on the same machine, however often the capture is interrupted: u comes from the row's own
digest, rows are dealt to shards in their order, and a shard is always computed in the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from distill_lab import activity
from distill_lab.device import best_device, free_memory, is_out_of_memory
from distill_lab.files.locks import take_lock
from distill_lab.train.cache_format import Counts, encode_draws, encode_top_k
from distill_lab.train.objectives._chunked_head import CHUNK_ELEMENTS, MAX_CHUNK, MIN_CHUNK
from distill_lab.train.packing import Row, choose_width, collate, pack, split_batch
from distill_lab.train.teacher_cache import TABLE, TeacherCache
from distill_lab.train.teachers import LiveTeacher
from distill_lab.train.training_log import OnLog

T = TypeVar("T")
SHARD_POSITIONS = 1 << 15
"""Loss positions of a shard: what a kill loses at most."""
BLOCK = 512
"""Ids of a block: the block that a point falls in is found first, then the id."""
POINTS_AT_ONCE = 1 << 11
"""Points whose ids are looked up together, with BLOCK doubles for each."""


@dataclass(frozen=True)
class Captured:
    """What a capture did."""

    num_rows: int
    """Rows captured by this call."""
    num_positions: int
    """Their loss positions."""
    num_known: int
    """Rows that the cache had already."""


def capture(
    teacher: LiveTeacher,
    rows: Sequence[Row],
    cache: TeacherCache,
    *,
    tokens_per_batch: int,
    on_log: OnLog = lambda row: None,
) -> Captured:
    """Add the rows that the cache lacks. Raises UserError if another process is adding to it."""
    busy = f"{cache.folder} is in use by another process; wait for it or choose another folder"
    lock = take_lock(cache.folder / ".lock", busy=busy)
    try:
        for partial in cache.folder.glob(".*.kd"):
            partial.unlink()  # what a kill left
        missing = cache.missing(rows)
        known = len({row.id for row in rows}) - len(missing)
        total, done = sum(int(row.loss_mask.sum()) for row in missing), 0
        apart = bool(missing) and teacher.rows_stay_apart()
        if missing:
            on_log({"note": f"capturing {total:,} loss positions of {len(missing):,} rows from {cache.identity.name}"})
        for shard in shards(missing):
            parts: dict[bytes, tuple[np.void, bytes]] = {}
            for batch in _batches(shard, tokens_per_batch, pack_rows=apart):
                parts |= _with_less_memory(batch, lambda part: _captured(teacher, part, cache))
                activity.report("capturing the teacher, position", done + _positions(parts), total)
            done += _positions(parts)
            cache.add_shard(*_joined([parts[row.id] for row in shard]))
        return Captured(len(missing), total, known)
    finally:
        lock.close()


def label_nats(
    model: LiveTeacher, rows: Sequence[Row], *, tokens_per_batch: int, temperature: float = 1.0
) -> dict[bytes, float]:
    """How surprised `model` is by each row: -log of its probability of the labels, summed over the row, in nats.

    Rows are found by their digest. model: any model, a student too. temperature: its logits are divided by it.
    """
    found: dict[bytes, float] = {}
    apart = bool(rows) and model.rows_stay_apart()
    for batch in _batches(list(rows), tokens_per_batch, pack_rows=apart) if rows else ():
        found |= _with_less_memory(batch, lambda part: _label_nats(model, part, temperature))
        activity.report("reading the training rows, row", len(found), len(rows))
    return found


@torch.no_grad()
def _label_nats(model: LiveTeacher, bins: list[list[Row]], temperature: float) -> dict[bytes, float]:
    rows = [row for bin_ in bins for row in bin_]
    batch = collate(bins).to(best_device())
    signal = model.signal(batch)
    size = min(max(CHUNK_ELEMENTS // model.num_ids, MIN_CHUNK), MAX_CHUNK)
    pieces = []
    for start in range(0, len(batch.labels_N), size):
        part = slice(start, start + size)
        log_p_CV = torch.log_softmax(signal.at(part).div_(temperature), -1)
        pieces.append(-log_p_CV.gather(1, batch.labels_N[part, None])[:, 0].double().cpu())
    nats_N = torch.cat(pieces) if pieces else torch.zeros(0)
    sizes = [int(row.loss_mask.sum()) for row in rows]
    return {row.id: float(each.sum()) for row, each in zip(rows, nats_N.split(sizes), strict=True)}


def shards(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows in their order, in groups of SHARD_POSITIONS loss positions or just above."""
    group: list[Row] = []
    positions = 0
    for row in rows:
        group.append(row)
        positions += int(row.loss_mask.sum())
        if positions >= SHARD_POSITIONS:
            yield group
            group, positions = [], 0
    if group:
        yield group


def _batches(rows: list[Row], tokens_per_batch: int, *, pack_rows: bool) -> Iterator[list[list[Row]]]:
    lengths = [len(row) for row in rows]
    width = choose_width(lengths, tokens_per_batch) if pack_rows else max(lengths)
    bins = pack(lengths, width) if pack_rows else [[i] for i in sorted(range(len(rows)), key=lambda i: lengths[i])]
    per_batch = max(1, tokens_per_batch // width)
    for start in range(0, len(bins), per_batch):
        yield [[rows[index] for index in bin_] for bin_ in bins[start : start + per_batch]]


def _with_less_memory(batch: list[list[Row]], compute: Callable[[list[list[Row]]], dict[bytes, T]]) -> dict[bytes, T]:
    parts = 1
    while True:
        try:
            found: dict[bytes, T] = {}
            for part in split_batch(batch, parts):
                found |= compute(part)
            return found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or parts >= sum(map(len, batch)):
                raise
        free_memory()
        parts *= 2


@torch.no_grad()
def _captured(teacher: LiveTeacher, bins: list[list[Row]], cache: TeacherCache) -> dict[bytes, tuple[np.void, bytes]]:
    """What is stored of each row: its line in the table (place not known yet) and its bytes."""
    identity, rows = cache.identity, [row for bin_ in bins for row in bin_]
    batch = collate(bins).to(best_device())
    signal = teacher.signal(batch)
    uniform_N = np.concatenate([uniform(row, identity.seed) for row in rows])
    pieces: list[tuple[np.ndarray, ...]] = []
    sums: list[tuple[torch.Tensor, torch.Tensor]] = []
    size = min(max(CHUNK_ELEMENTS // identity.num_ids, MIN_CHUNK), MAX_CHUNK)
    for start in range(0, max(1, len(batch.labels_N)), size):
        part = slice(start, start + size)
        labels_C = batch.labels_N[part]
        log_p_CV = torch.log_softmax(signal.at(part).div_(identity.temperature), -1)
        p_CV = log_p_CV.exp()
        label_C = log_p_CV.gather(1, labels_C[:, None])[:, 0]
        sums.append((label_C.cpu(), -torch.linalg.vecdot(p_CV, log_p_CV).cpu()))
        if identity.mode == "sampled":
            uniform_C = torch.from_numpy(uniform_N[part]).to(p_CV.device)
            counts = systematic(p_CV, uniform_C, identity.size, labels_C)
            pieces.append((counts.sizes_P, counts.ids_M, counts.counts_M))
        elif identity.mode == "top_k":
            pieces.append(_top_k(p_CV, log_p_CV, identity.size))
        else:
            pieces.append((signal.hidden_NT[part].bfloat16().view(torch.int16).cpu().numpy(),))
    log_p_N, entropy_N = (torch.cat(each).double().numpy() for each in zip(*sums, strict=True))
    columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
    found, start, entry = {}, 0, np.zeros(1, TABLE)
    starts_M = np.concatenate([[0], np.cumsum(columns[0])]) if identity.mode == "sampled" else None
    for row in rows:
        part = slice(start, start + int(row.loss_mask.sum()))
        entry["id"] = np.frombuffer(row.id, "<u8")
        entry["positions"] = part.stop - part.start
        entry["log_p"], entry["entropy"] = log_p_N[part].sum(), entropy_N[part].sum()
        if starts_M is not None:
            inside = slice(starts_M[part.start], starts_M[part.stop])
            data = encode_draws(Counts(columns[0][part], columns[1][inside], columns[2][inside]), cache.vocabulary)
        elif identity.mode == "top_k":
            data = encode_top_k(columns[0][part], columns[1][part], cache.vocabulary)
        else:
            data = columns[0][part].astype("<i2").tobytes()
        found[row.id] = (entry[0].copy(), data)
        start = part.stop
    return found


def uniform(row: Row, seed: int) -> np.ndarray:
    """One number in [0, 1) for each loss position, from seed, row and place alone."""
    key = np.array([seed, int.from_bytes(row.id, "little")], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(int(row.loss_mask.sum()))


def systematic(p_CV: torch.Tensor, uniform_C: torch.Tensor, num_draws: int, labels_C: torch.Tensor) -> Counts:
    """Systematic draws from each row of p: distinct ids and their counts, without those of the label.

    p_CV: fp32, sums to about 1. uniform_C: fp64, in [0, 1). Sums are kept in fp64: in fp32, ids below 6e-8 would vanish.
    """
    rows, vocabulary = p_CV.shape
    num_blocks = -(-vocabulary // BLOCK)
    padded_CKB = torch.nn.functional.pad(p_CV, (0, num_blocks * BLOCK - vocabulary)).view(rows, num_blocks, BLOCK)
    ends_CK = padded_CKB.sum(2, dtype=torch.float64).cumsum(1)
    steps_N = torch.arange(num_draws, device=p_CV.device, dtype=torch.float64)
    point_CN = _below((uniform_C[:, None] + steps_N) / num_draws * ends_CK[:, -1:], ends_CK[:, -1:])
    block_CN = torch.searchsorted(ends_CK, point_CN, right=True)
    before_CN = torch.cat([ends_CK.new_zeros(rows, 1), ends_CK], 1).gather(1, block_CN)
    rest_CN = (point_CN - before_CN).clamp_min_(0)
    place_CN = torch.arange(rows, device=p_CV.device)[:, None].expand_as(block_CN)
    block = (place_CN * num_blocks + block_CN).flatten()
    blocks_FB, rest, inside = padded_CKB.view(-1, BLOCK), rest_CN.flatten(), torch.empty_like(block)
    for start in range(0, len(block), POINTS_AT_ONCE):
        here = slice(start, start + POINTS_AT_ONCE)
        # Points of one position fall into few blocks: each of those is cumulated once.
        first, index = torch.unique_consecutive(block[here], return_inverse=True)
        ends_MB = blocks_FB[first].double().cumsum(1)[index]
        point_M1 = _below(rest[here], ends_MB[:, -1])[:, None]
        inside[here] = torch.searchsorted(ends_MB, point_M1, right=True)[:, 0]
    id_M, count_M = torch.unique_consecutive(
        (place_CN.flatten() * vocabulary + block_CN.flatten() * BLOCK + inside), return_counts=True
    )
    position_M, id_M = id_M // vocabulary, id_M % vocabulary
    other_M = id_M != labels_C[position_M]
    position_M, id_M, count_M = (each[other_M].cpu().numpy() for each in (position_M, id_M, count_M))
    return Counts(np.bincount(position_M, minlength=rows), id_M, count_M)


def _below(point: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """The point, moved below the end by the least there is if rounding put it there: so it falls on an id with p > 0."""
    return torch.minimum(point, torch.nextafter(end, torch.zeros_like(end)))


def _top_k(p_CV: torch.Tensor, log_p_CV: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    log_p_CK, ids_CK = log_p_CV.topk(min(k, log_p_CV.shape[1] - 1), 1)
    rest_C1 = p_CV.scatter(1, ids_CK, 0.0).sum(1, keepdim=True).clamp_min(1e-30).log()
    return ids_CK.cpu().numpy(), torch.cat([log_p_CK, rest_C1], 1).cpu().numpy()


def _positions(parts: dict[bytes, tuple[np.void, bytes]]) -> int:
    return sum(int(entry["positions"]) for entry, _ in parts.values())


def _joined(parts: Sequence[tuple[np.void, bytes]]) -> tuple[np.ndarray, bytes]:
    entries = np.array([entry for entry, _ in parts], TABLE)
    sizes = np.array([len(data) for _, data in parts], np.int64)
    entries["offset"] = np.cumsum(sizes) - sizes
    return entries, b"".join(data for _, data in parts)
