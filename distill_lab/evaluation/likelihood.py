"""How likely a model finds texts: contexts and continuations as token ids -> log-probabilities, without `[B, W, V]` logits.

    model = LiveTeacher(loaded, num_ids=rows_of_its_head)
    for place, found in likelihoods(model, pairs): found.log_p, found.is_greedy

Shapes: N scored positions of a batch, C positions of a chunk, V ids, A pairs of (scored position, token).

log P(continuation | context) is the sum of log P(token | all before it) over the continuation's tokens. Rows are packed as
in training, hidden states are projected chunk by chunk, and pairs that differ in their last token only (the letters of a
multiple choice) are one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from distill_lab import activity
from distill_lab.device import free_memory, is_out_of_memory
from distill_lab.errors import UserError
from distill_lab.models.plain_text import prefix_id, text_ids
from distill_lab.train.objectives._chunked_head import CHUNK_ELEMENTS, MAX_CHUNK, MIN_CHUNK
from distill_lab.train.packing import Row, choose_width, collate, pack, split_batch
from distill_lab.train.teachers import LiveTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_CPU, TOKENS_GPU = 8_192, 32_768
"""Tokens of a batch."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids; each of the two has at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model says of a continuation after its context."""

    log_p: float
    """Natural logarithm of its probability; at most 0."""
    is_greedy: bool
    """Whether each token is the model's most likely one, so that greedy decoding would write the continuation."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """One row, and the pairs that it answers."""

    row: Row
    places: list[int]
    """Of the pairs."""
    num_scored: int
    """The row's last positions, those of the longest continuation."""


def likelihoods(
    model: LiveTeacher, pairs: Sequence[Pair], *, tokens_per_batch: int | None = None
) -> Iterator[tuple[int, Likelihood]]:
    """(place in `pairs`, its likelihood) for every pair, batch by batch, long ones first.

    tokens_per_batch: None: by the device. Raises UserError if not even one pair fits in memory, or if the model's output is
    not a number.
    """
    if not pairs:
        return
    size = tokens_per_batch or (TOKENS_CPU if model.model.device.type == "cpu" else TOKENS_GPU)
    rows = _shared_rows(pairs)
    done = 0
    for bins in _batches(rows, size, packed=model.rows_stay_apart()):
        activity.report("reading texts for their probabilities,", done, len(pairs))
        found = _scored(model, pairs, bins)
        done += len(found)
        yield from found


def _shared_rows(pairs: Sequence[Pair]) -> list[_Shared]:
    """The pairs by what the model reads of them: all but the last token, which predicts nothing."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, pair in enumerate(pairs):
        assert min(len(pair.context), len(pair.continuation)), f"pair {place} is empty"
        groups.setdefault((*pair.context, *pair.continuation)[:-1], []).append(place)
    shared = []
    for ids, places in groups.items():
        num_scored = max(len(pairs[place].continuation) for place in places)
        inputs = np.asarray(ids, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=bool)
        mask[-num_scored:] = True
        target = np.append(inputs[1:], pairs[places[0]].continuation[-1]).astype(np.int32)
        shared.append(_Shared(Row(inputs, target, mask), places, num_scored))
    return shared


def _batches(rows: Sequence[_Shared], size: int, *, packed: bool) -> Iterator[list[list[_Shared]]]:
    """Batches of bins of about `size` tokens, the widest first: memory that is too small shows at once."""
    lengths = [len(each.row) for each in rows]
    if packed:
        width = choose_width(lengths, size)
        bins = pack(lengths, width)
        per_batch = max(1, size // width)
    else:
        bins = [[index] for index in sorted(range(len(rows)), key=lambda index: -lengths[index])]
        per_batch = max(1, size // max(lengths))
    for start in range(0, len(bins), per_batch):
        yield [[rows[index] for index in bin_] for bin_ in bins[start : start + per_batch]]


def _scored(model: LiveTeacher, pairs: Sequence[Pair], bins: list[list[_Shared]]) -> list[tuple[int, Likelihood]]:
    """The likelihoods of one batch; computed in two halves if memory runs out."""
    try:
        return _score(model, pairs, bins)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()  # after the except block, whose error holds the tensors
    halves = split_batch(bins, 2)
    if len(halves) < 2:
        raise UserError(
            f"out of memory with one text of {len(bins[0][0].row)} tokens; use --model.quantization 8bit or 4bit, or a "
            "smaller model"
        )
    return [found for half in halves for found in _scored(model, pairs, half)]


@torch.no_grad()
def _score(model: LiveTeacher, pairs: Sequence[Pair], bins: list[list[_Shared]]) -> list[tuple[int, Likelihood]]:
    batch = collate([[shared.row for shared in bin_] for bin_ in bins]).to(model.model.device)
    signal = model.signal(batch)
    # The scored positions of a batch are in the order of its bins and rows.
    places: list[int] = []
    asked: list[tuple[int, int, int]] = []
    end = 0
    for shared in (each for bin_ in bins for each in bin_):
        end += shared.num_scored
        for place in shared.places:
            tokens = pairs[place].continuation
            asked += [(end - len(tokens) + step, token, len(places)) for step, token in enumerate(tokens)]
            places.append(place)
    positions_A, tokens_A, owners_A = np.array(sorted(asked), dtype=np.int64).T
    log_p, is_greedy = np.zeros(len(places)), np.ones(len(places), dtype=bool)
    size = max(MIN_CHUNK, min(MAX_CHUNK, CHUNK_ELEMENTS // model.num_ids))
    for start in range(0, end, size):
        stop = min(start + size, end)
        part = slice(*np.searchsorted(positions_A, (start, stop)))
        logits_CV = signal.at(slice(start, stop))
        rows_A = torch.from_numpy(positions_A[part] - start).to(logits_CV.device)
        said_A = torch.from_numpy(tokens_A[part]).to(logits_CV.device)
        log_p_A = logits_CV[rows_A, said_A] - logits_CV.logsumexp(-1)[rows_A]
        np.add.at(log_p, owners_A[part], log_p_A.double().cpu().numpy())
        agrees_A = (logits_CV.argmax(-1)[rows_A] == said_A).cpu().numpy()
        np.logical_and.at(is_greedy, owners_A[part], agrees_A)
    if not np.isfinite(log_p).all():
        raise UserError("the model gives probabilities that are not numbers; its weights may be damaged")
    return [
        (place, Likelihood(float(value), bool(greedy)))
        for place, value, greedy in zip(places, log_p, is_greedy, strict=True)
    ]


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, *, max_length: int
) -> tuple[Pair, int]:
    """A context and its continuation as token ids, and how many tokens of the context had to be left out.

    The two are tokenized as one text and divided behind the context's own tokens; spaces at the end of the context belong to
    the continuation, whose first token has them. max_length: tokens that the model reads; what is too long loses the
    beginning of its context. Raises UserError for a continuation without tokens, and one that is too long by itself.
    """
    if context:
        bare = context.rstrip()
        if bare:
            context, continuation = bare, context[len(bare) :] + continuation
        before = text_ids(tokenizer, context)
        after = text_ids(tokenizer, context + continuation)[len(before) :]
    else:
        before, after = [prefix_id(tokenizer)], text_ids(tokenizer, continuation, special=False)
        if len(after) > 1 and after[0] == before[0]:
            after = after[1:]
    if not after or len(after) > max_length:
        shown = continuation if len(continuation) <= 60 else f"{continuation[:60]}..."
        raise UserError(
            f"the continuation {shown!r} has {len(after)} tokens, and the model reads 1 to {max_length} at once"
        )
    cut = max(0, len(before) + len(after) - (max_length + 1))
    return Pair(tuple(before[cut:]), tuple(after)), cut


def rolling_pairs(ids: Sequence[int], prefix: int, *, max_length: int) -> list[Pair]:
    """A text of any length as pairs in which each token is the continuation once, with as much context as fits.

    The first pair has only `prefix` before it. The last one is filled up with tokens that were scored before.
    """
    pairs: list[Pair] = []
    done = 0
    while done < len(ids):
        end = min(done + max_length, len(ids))
        context = (prefix,) if not done else tuple(ids[end - max_length - 1 : done])
        pairs.append(Pair(context, tuple(ids[done:end])))
        done = end
    return pairs


def total(parts: Sequence[Likelihood]) -> float:
    """The log-likelihood of a text from those of its parts."""
    return math.fsum(part.log_p for part in parts)
