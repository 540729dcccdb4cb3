"""A teacher from its cache: the packed batch that the student reads -> what was captured at its loss positions.

    fill(rows, config, folder, student=tokenizer, on_log=print)    capture what is missing, before training
    teacher = cached_teacher(config, folder, student_rows=151_936)
    teacher.signal(batch).at(slice(0, 220))                        Draws, TopK, or fp32 logits from hidden states

Shapes: N loss positions of a batch, C of a chunk, M draws, K ids of a position, T the teacher's hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from distill_lab.config import TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.cache_folder import TEACHERS, cache_folder, is_off
from distill_lab.generation.model_identity import shown_name, weights_of
from distill_lab.models.loading import load_model, load_tokenizer, without_weights
from distill_lab.models.token_bytes import token_bytes, vocabulary_digest
from distill_lab.run import fingerprint
from distill_lab.train.cache_format import CacheFormatError, decode_draws, decode_top_k
from distill_lab.train.capture import Captured, capture
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.objectives import Draws, Head, LossBatch, Signal, TopK, signals_of
from distill_lab.train.packing import Row
from distill_lab.train.teacher_cache import CacheIdentity, Found, TeacherCache, create
from distill_lab.train.teachers import HeadSignal, LiveTeacher, reads_other_tokens, refuse_foreign_tokens
from distill_lab.train.training_log import OnLog

FORMS = {"sampled": "draws", "top_k": "top_k", "hidden": "logits"}
"""What an objective must read (`signals_of`) to learn from a cache of each mode."""
GIVEN = "given"
"""Mode of caches that were made from files of another tool, each as in mode top_k (`given_teacher.py`)."""
DEFAULT_SIZE = {"sampled": 64, "top_k": 16, "hidden": 0}


@dataclass(frozen=True)
class DrawsSignal:
    """Draws at N positions."""

    draws: Draws
    starts_N1: np.ndarray
    """Where each position's ids begin."""
    num_ids: int

    def at(self, part: slice) -> Draws:
        """The draws of some positions, counted from the first of them."""
        first, last, _ = part.indices(len(self.starts_N1) - 1)
        last = max(first, last)
        inside, all_ = slice(int(self.starts_N1[first]), int(self.starts_N1[last])), self.draws
        return Draws(
            all_.positions_M[inside] - first, all_.ids_M[inside], all_.weights_M[inside], all_.total_C[part],
            all_.entropy_C[part], all_.is_partial,
        )  # fmt: skip


@dataclass(frozen=True)
class TopKSignal:
    """The most likely ids at N positions."""

    top: TopK
    num_ids: int

    def at(self, part: slice) -> TopK:
        """Those of some positions."""
        return self.top.at(part)


class CachedTeacher:
    """What a cache holds, for a student whose head has `num_ids` rows or whose teacher has only so many."""

    def __init__(self, cache: TeacherCache, num_ids: int, head: Head | None = None) -> None:
        """head: the teacher's, which makes logits of hidden states."""
        self.cache, self.num_ids, self.head = cache, min(num_ids, cache.identity.num_ids), head

    def prepare(self, *, flat: bool) -> None:
        """Nothing: no model reads the batch."""

    def rows_stay_apart(self) -> bool:
        """What was captured of a row does not depend on its neighbors."""
        return True

    def signal(self, batch: LossBatch) -> Signal:
        """Decoded on the CPU and moved to the batch's device. Raises UserError for a row that is not in the cache."""
        found = self.cache.read(batch.row_ids_R)
        if int(found.positions_R.sum()) != len(batch.labels_N):
            raise UserError(f"{self.cache.folder}: its rows have other loss positions than the training rows")
        try:
            if self.cache.identity.mode == "sampled":
                return self._draws(found, batch)
            if self.cache.identity.mode == "top_k":
                return self._top_k(found, batch.labels_N.device)
        except (CacheFormatError, IndexError) as error:
            raise UserError(f"{self.cache.folder} is damaged ({error}); run `distill cache --check`") from None
        assert self.head is not None, "a cache of hidden states needs the teacher's head"
        data = found.data[: int(found.ends_R[-1]) if len(found.ends_R) else 0]
        hidden = torch.from_numpy(data.view("<i2").reshape(len(batch.labels_N), -1).astype(np.int16))
        return HeadSignal(hidden.view(torch.bfloat16), self.head, self.num_ids, batch.labels_N.device)

    def _draws(self, found: Found, batch: LossBatch) -> DrawsSignal:
        identity = self.cache.identity
        counts = decode_draws(found.data, found.starts_R, found.positions_R, self.cache.vocabulary)
        sizes_N, ids_M, counts_M = counts.sizes_P, counts.ids_M, counts.counts_M
        labels_N = batch.labels_N.cpu().numpy()
        starts_N = np.cumsum(sizes_N) - sizes_N
        drawn_N = np.diff(np.concatenate([[0], np.cumsum(counts_M)])[np.append(starts_N, len(ids_M))])
        label_N = identity.size - drawn_N
        if len(label_N) and label_N.min() < 0:
            raise CacheFormatError("more draws than there were")
        # The label of each position goes before its other ids; then what the student does not have goes.
        ids_M = np.insert(ids_M, starts_N, labels_N)
        counts_M = np.insert(counts_M, starts_N, label_N)
        position_M = np.repeat(np.arange(len(sizes_N)), sizes_N + 1)
        kept_M = (counts_M > 0) & (ids_M < self.num_ids)
        ids_M, counts_M, position_M = ids_M[kept_M], counts_M[kept_M], position_M[kept_M]
        total_N = np.bincount(position_M, counts_M, minlength=len(sizes_N))
        weights_M = counts_M / total_N[position_M]
        starts_N1 = np.concatenate([[0], np.cumsum(np.bincount(position_M, minlength=len(sizes_N)))])
        device = batch.labels_N.device
        draws = Draws(
            torch.from_numpy(position_M).to(device),
            torch.from_numpy(ids_M).to(device),
            torch.from_numpy(weights_M.astype(np.float32)).to(device),
            torch.from_numpy((total_N > 0).astype(np.float32)).to(device),
            torch.from_numpy(_spread(found.entropy_R, found.positions_R)).to(device),
            is_partial=bool((total_N == 0).any()),
        )
        return DrawsSignal(draws, starts_N1, self.num_ids)

    def _top_k(self, found: Found, device: torch.device) -> TopKSignal:
        size = self.cache.identity.size
        ids_NK, log_p_NB = decode_top_k(
            found.data, found.starts_R, found.ends_R, found.positions_R, size, self.cache.vocabulary
        )
        if len(ids_NK) and ids_NK.max() >= self.num_ids:
            raise UserError(
                f"{self.cache.folder}: the teacher has id {ids_NK.max()}, which the student lacks, among its {size} most "
                "likely; use --train.teacher-cache.mode sampled"
            )
        known_N = ~np.isnan(log_p_NB[:, 0])
        known = None if known_N.all() else torch.from_numpy(known_N).to(device)
        log_p_NB = np.where(known_N[:, None], log_p_NB, -np.log(size + 1)).astype(np.float32)
        top = TopK(torch.from_numpy(ids_NK).to(device), torch.from_numpy(log_p_NB).to(device), known)
        return TopKSignal(top, self.num_ids)


def _spread(sums_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
    """Each row's sum, spread evenly over its positions."""
    return np.repeat(sums_R / np.maximum(positions_R, 1), positions_R).astype(np.float32)


def cached_teacher(config: TrainConfig, folder: Path, *, student_rows: int, rows: Sequence[Row]) -> CachedTeacher:
    """Open the cache in `folder` for training. Raises UserError if rows are missing, or if it is another teacher's."""
    cache = TeacherCache.open(folder, cache_identity(config))
    if missing := cache.missing(rows):
        raise UserError(
            f"{folder}: {len(missing):,} of {len(rows):,} rows are not in this teacher cache, the first of them "
            f"{missing[0].id.hex()} with {len(missing[0])} tokens; run `distill train` in one process first, or `distill "
            "logits`, which capture what is missing"
        )
    head = None
    if cache.identity.mode == "hidden":
        model, _ = load_model(config.teacher)
        head = decoder_and_head(model)[1]
    return CachedTeacher(cache, student_rows, head)


def fill(
    rows: Sequence[Row],
    config: TrainConfig,
    folder: Path,
    *,
    student: PreTrainedTokenizerBase,
    on_log: OnLog,
) -> Captured:
    """Capture what the cache in `folder` lacks; loads the teacher only if something is. Raises UserError."""
    from distill_lab.device import memory_returned

    cache = create(folder, cache_identity(config), rows)
    if not cache.missing(rows):
        return Captured(0, 0, len({row.id for row in rows}))
    names = token_bytes(load_tokenizer(config.teacher))
    refuse_foreign_tokens(names, rows, num_ids=cache.identity.num_ids, student=student, teacher=config.teacher.model)
    with memory_returned():
        teacher = LiveTeacher(load_model(config.teacher)[0], cache.identity.num_ids)
        found = capture(teacher, rows, cache, tokens_per_batch=config.tokens_per_batch, on_log=on_log)
        del teacher
    per_position = cache.num_bytes / max(1, cache.num_positions)
    on_log({"note": f"the teacher cache {folder} has {len(cache):,} rows, {per_position:.1f} bytes per loss position"})
    return found


def cache_identity(config: TrainConfig) -> CacheIdentity:
    """What the cache of these settings depends on. Reads the teacher's config and tokenizer, not its weights."""
    mode, teacher = config.teacher_cache.mode, config.teacher
    settings = dict(each.split("=", 1) for each in config.objective_settings)
    size = config.teacher_cache.size or DEFAULT_SIZE[mode]
    head = without_weights(teacher).get_output_embeddings()
    assert head is not None
    identity = CacheIdentity(
        mode=mode,
        size=0 if mode == "hidden" else size,
        temperature=1.0 if mode == "hidden" else float(settings.get("temperature", 1.0)),
        seed=config.teacher_cache.seed if mode == "sampled" else 0,
        num_ids=head.out_features,
        teacher=fingerprint(weights_of(teacher)),
        tokenizer=vocabulary_digest(token_bytes(load_tokenizer(teacher))),
        name=shown_name(teacher),
    )
    if mode == "top_k" and size >= identity.num_ids:
        raise UserError(f"train.teacher-cache.size {size}: the teacher has only {identity.num_ids} ids")
    return identity


def check_cache(config: TrainConfig) -> None:
    """Raise UserError for a cache that the objective cannot learn from."""
    mode = config.teacher_cache.mode
    if (mode == GIVEN) != bool(config.teacher_cache.folders):
        raise UserError(
            "train.teacher-cache.mode given and train.teacher-cache.folders go together; give both or neither"
        )
    if mode == GIVEN and config.teacher.model:
        raise UserError(
            f"train.teacher-cache.mode given has the distributions already; leave out the teacher {config.teacher.model}"
        )
    if mode == "off" or FORMS.get(mode, "top_k") in signals_of(config.objective):
        return
    if not signals_of(config.objective):
        raise UserError(
            f"the objective {config.objective} reads no teacher; leave out --train.teacher-cache.mode {mode}"
        )
    if reads_other_tokens(config.objective):
        raise UserError(
            f"train.teacher-cache.mode {mode}: a cache holds the teacher's distributions at the student's tokens, and with "
            f"{config.objective} the teacher reads its own; use --cache-mode off (--train.teacher-cache.mode off), or a "
            "teacher with the student's tokenizer"
        )
    raise UserError(
        f"the objective {config.objective} cannot be learned from a {mode} cache: it needs the teacher's probability of "
        "every id that the student may choose, and draws would give it a bias; use --train.objective forward_kl, "
        "--train.teacher-cache.mode top_k or hidden, or no cache"
    )


def cache_place(config: TrainConfig, out: Path) -> Path:
    """The folder of the cache: as given, or the one for this teacher and these settings that all runs share.

    Beside `out`, the student, if the user turned the shared cache off.
    """
    if config.teacher_cache.folder:
        return Path(config.teacher_cache.folder).expanduser()
    if is_off():
        return out.with_name(f"{out.name}.teacher_cache")
    return cache_folder() / TEACHERS / cache_identity(config).digest()
