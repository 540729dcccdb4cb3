"""A batch to which rows are added and from which they are evicted at any time; new tokens are concatenated, not padded.

    batch = FlatBatch(model, sampler, ...)
    for row, token in batch.add(rows): ...          # computes shared prefixes on first use
    for row, token in batch.step(): ...

Supports decoders whose layers are plain causal attention over all earlier tokens (`is_suitable`).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill_lab import activity
from distill_lab.generation.decoding.attention import NAME, Group, Plan, Prefill, Shared, Step, Unsuitable
from distill_lab.generation.decoding.batch_slab import BatchSlab
from distill_lab.generation.decoding.prefixes import Prefix
from distill_lab.generation.decoding.sampler import Sampler
from distill_lab.generation.decoding.sequence import DecodingSequence, NextTokens
from distill_lab.generation.decoding.slices import Slices

EXTRA_BYTES_CPU, EXTRA_BYTES_GPU = 1 << 19, 1 << 26
"""Cost of one more attention call, as bytes of keys and values read (measured on a CPU; kernel launches on a GPU)."""
TRIAL_TOKENS = 8
TRIAL_TOLERANCE = 0.02
"""Maximum difference of a logit in the trial, relative to the largest logit: half precision can differ this much."""

OTHER_ATTENTION = "its layers are not all plain attention"


def extra_bytes(device: torch.device) -> int:
    """Cost of one more attention call per layer, in bytes of keys and values read."""
    return EXTRA_BYTES_CPU if device.type == "cpu" else EXTRA_BYTES_GPU


def is_suitable(model: PreTrainedModel) -> bool:
    """Whether FlatBatch supports a model."""
    return not why_not(model)


@torch.inference_mode()
def why_not(model: PreTrainedModel) -> str:
    """Why FlatBatch does not support a model; empty if it does. Compares both ways on a few tokens to be sure."""
    taken = inspect.signature(model.forward).parameters
    layers = DynamicCache(config=model.config).layers
    if len({weight.device for weight in model.parameters()}) > 1:
        return "its layers are spread over several devices"
    if (
        not {"position_ids", "logits_to_keep"} <= taken.keys()
        or not model._supports_attention_backend
        or model.config.is_encoder_decoder
        or not layers
        or any(type(layer) is not DynamicLayer for layer in layers)
    ):
        return OTHER_ATTENTION
    ids_1T = torch.arange(TRIAL_TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    trial = Prefix(ids_1T[0].tolist(), None, TRIAL_TOKENS, 0, 1)
    try:
        logits_V = _compute(model, trial, Slices(first=TRIAL_TOKENS, maximum=TRIAL_TOKENS), "")
    except Unsuitable:
        return OTHER_ATTENTION
    expected_V = model(input_ids=ids_1T, use_cache=False).logits[0, -1].float()
    difference = float((logits_V - expected_V).abs().max() / expected_V.abs().max())
    if len(trial.keys_values) != len(layers):
        return OTHER_ATTENTION
    if difference < TRIAL_TOLERANCE:
        return ""
    return f"in a trial its logits differed by {difference:.1%} from those of transformers"


class FlatBatch:
    """Rows being decoded. bytes_per_token: keys and values of all layers. headroom: see `BatchSlab`. slices=None: one."""

    evict_fraction = 1 / 32
    """Evict finished rows once they are this fraction of the batch."""
    can_add = True

    def __init__(
        self,
        model: PreTrainedModel,
        sampler: Sampler,
        *,
        bytes_per_token: int,
        headroom: int,
        slices: Slices | None = None,
    ) -> None:
        self._slices = slices or Slices(first=math.inf, maximum=sys.maxsize)
        self.rows: list[DecodingSequence] = []
        self._model, self._sampler, self._headroom = model, sampler, headroom
        self._num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._max_waste = extra_bytes(model.device) * self._num_layers // bytes_per_token
        """Maximum masked columns in a slab before another slab is cheaper."""
        self._slabs: list[BatchSlab] = []
        self._plan: Step | None = None
        self._ids_N = self._positions_N = torch.empty(0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def add(self, rows: Sequence[DecodingSequence]) -> NextTokens:
        """Add `rows`; return each with its next token. A single row that is longer than a slice is read in slices."""
        start = self._slices.clock()
        for row in rows:
            for prefix in reversed(list(row.prefix.path()) if row.prefix else []):
                if not prefix.keys_values:
                    _compute(self._model, prefix, self._slices, "reading the shared prompt")
        self._slices.prefix_seconds += self._slices.clock() - start
        if len(rows) == 1 and rows[0].num_own > self._slices.size:
            return self._add_long(rows[0])
        with self._slices.timed(sum(row.num_own for row in rows)):
            return self._add(rows)

    def _add_long(self, row: DecodingSequence) -> NextTokens:
        """Read all but the last token of `row` as an unshared prefix, then store both in a new slab."""
        own = row.own_ids()
        end = len(row.prompt_ids) + len(row.tokens) - 1
        head = Prefix(own[:-1], row.prefix, end, 0, 1)
        _compute(self._model, head, self._slices, "reading a long prompt")
        slab = BatchSlab([len(own)], num_layers=self._num_layers, headroom=self._headroom)

        def keep(layer: int, keys_1G1D: torch.Tensor, values_1G1D: torch.Tensor) -> None:
            keys_1GTD, values_1GTD = head.keys_values[layer]
            slab.store(layer, torch.cat([keys_1GTD, keys_1G1D], 2), torch.cat([values_1GTD, values_1G1D], 2))

        group = Group(0, [1], keep, device=self._model.device)
        plan = Prefill([group], [(prefix, None) for prefix in head.path()], num_rows=1)
        ids, positions = self._tensor(own[-1:]), self._tensor([end])
        logits_1V = _forward(self._model, ids, positions, plan, keep=torch.tensor([0]))
        return self._append([row], [slab], logits_1V)

    def _add(self, rows: Sequence[DecodingSequence]) -> NextTokens:
        rows = sorted(rows, key=lambda row: -row.num_own)
        groups: list[Group] = []
        slabs: list[BatchSlab] = []
        computed: list[DecodingSequence] = []
        sources: list[int] = []
        first = 0
        for part in self._alike(rows):
            start = len(computed)
            seen: dict[tuple[int, ...], int] = {}
            copies = []
            for row in part:
                key = (id(row.prefix), *row.own_ids())
                if key not in seen:
                    seen[key] = len(seen)
                    computed.append(row)
                copies.append(seen[key])
            sources += [start + copy for copy in copies]
            slab = BatchSlab([row.num_own for row in part], num_layers=self._num_layers, headroom=self._headroom)
            lengths = [row.num_own for row in computed[start:]]
            twice = copies if len(seen) < len(part) else None
            group = Group(first, lengths, slab.store, device=self._model.device, copies=twice)
            first += group.num_tokens
            groups.append(group)
            slabs.append(slab)
        lengths = [row.num_own for row in computed]
        ids = [token for row in computed for token in row.own_ids()]
        starts = [row.prefix.end if row.prefix else 0 for row in computed]
        positions = [start + offset for start, own in zip(starts, lengths, strict=True) for offset in range(own)]
        ends = torch.tensor(lengths).cumsum(0) - 1
        plan = Prefill(groups, self._shared(computed, lengths), num_rows=len(rows))
        logits_RV = _forward(self._model, self._tensor(ids), self._tensor(positions), plan, keep=ends)
        if sources != list(range(len(rows))):
            logits_RV = logits_RV[self._tensor(sources)]
        return self._append(rows, slabs, logits_RV)

    def _append(self, rows: list[DecodingSequence], slabs: list[BatchSlab], logits_RV: torch.Tensor) -> NextTokens:
        next_N = self._sampler.add(rows, logits_RV)
        self._ids_N = torch.cat([self._ids_N, next_N])
        lengths_N = self._tensor([len(row.prompt_ids) + len(row.tokens) for row in rows])
        self._positions_N = torch.cat([self._positions_N, lengths_N])
        self.rows += rows
        self._slabs += slabs
        self._plan = None
        return list(zip(rows, next_N.tolist(), strict=True))

    @torch.inference_mode()
    def step(self) -> NextTokens:
        """The next token of every row."""
        if self._plan is None:
            self._merge()
            self._plan = Step(self._slabs, self._shared(self.rows, None))
        for slab in self._slabs:
            slab.make_room()
        logits_NV = _forward(self._model, self._ids_N, self._positions_N, self._plan)
        for slab in self._slabs:
            slab.length += 1
        self._ids_N = self._sampler.next(self.rows, logits_NV)
        self._positions_N = self._positions_N + 1
        return list(zip(self.rows, self._ids_N.tolist(), strict=True))

    @torch.inference_mode()
    def evict(self) -> None:
        """Remove finished rows."""
        order: list[int] = []
        first = 0
        for slab in self._slabs:
            size = len(slab)
            done = [index for index in range(size) if self.rows[first + index].done]
            kept = slab.evict(done) if done else range(size)
            order += [first + index for index in kept]
            first += size
        self._slabs = [slab for slab in self._slabs if len(slab)]
        self._reorder(order)

    def _reorder(self, order: list[int]) -> None:
        self.rows = [self.rows[number] for number in order]
        index = self._tensor(order)
        self._ids_N, self._positions_N = self._ids_N[index], self._positions_N[index]
        self._sampler.keep(index)
        self._plan = None

    def _merge(self) -> None:
        """Merge slabs while saving an attention call is worth more than the columns that are then masked."""
        while len(self._slabs) > 1:
            by_length = sorted(range(len(self._slabs)), key=lambda number: -self._slabs[number].length)
            waste, into, taken = min(
                (len(self._slabs[two]) * (self._slabs[one].length - self._slabs[two].length), one, two)
                for one, two in pairwise(by_length)
            )
            if waste > self._max_waste:
                return
            firsts = [0]
            for slab in self._slabs:
                firsts.append(firsts[-1] + len(slab))
            self._slabs[into].absorb(self._slabs[taken])
            order = []
            for number in range(len(self._slabs)):
                if number != taken:
                    order += range(firsts[number], firsts[number + 1])
                if number == into:
                    order += range(firsts[taken], firsts[taken + 1])
            del self._slabs[taken]
            self._reorder(order)

    def _alike(self, rows: Sequence[DecodingSequence]) -> Iterator[list[DecodingSequence]]:
        """Split rows, longest first, into parts whose padding costs less than one more part."""
        part: list[DecodingSequence] = []
        waste = 0
        for row in rows:
            waste += part[0].num_own - row.num_own if part else 0
            if part and waste > self._max_waste:
                yield part
                part, waste = [], 0
            part.append(row)
        if part:
            yield part

    def _shared(self, rows: Sequence[DecodingSequence], lengths: Sequence[int] | None) -> Shared:
        """The prefixes of `rows`, each with the new tokens that attend to it; lengths: new tokens per row, None: one."""
        tokens: dict[Prefix, list[int]] = {}
        first = 0
        for index, row in enumerate(rows):
            size = lengths[index] if lengths else 1
            for prefix in row.prefix.path() if row.prefix else ():
                tokens.setdefault(prefix, []).extend(range(first, first + size))
            first += size
        return [(prefix, None if len(own) == first else self._tensor(own)) for prefix, own in tokens.items()]

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)


def _compute(model: PreTrainedModel, prefix: Prefix, slices: Slices, what: str) -> torch.Tensor:
    """Compute keys and values of a prefix in slices; its parents must be computed. Returns the last logits, fp32 [V]."""
    device, first = model.device, prefix.end - len(prefix.ids)
    done = Prefix([], prefix.parent, first, 0, 1)
    logits_1V = torch.empty(0)
    for part in slices.of(prefix.ids):
        computed: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(layer: int, keys_1GPD: torch.Tensor, values_1GPD: torch.Tensor) -> None:
            if layer != len(computed):  # noqa: B023 - called within this iteration
                raise Unsuitable
            computed.append((keys_1GPD.contiguous(), values_1GPD.contiguous()))  # noqa: B023

        if prefix.ids != part:
            activity.report(what, len(done.ids), len(prefix.ids))
        before: Shared = [(each, None) for each in done.path() if each.keys_values]
        plan = Prefill([Group(0, [len(part)], keep, device=device)], before, num_rows=1)
        positions = torch.arange(done.end, done.end + len(part), device=device)
        with slices.timed(len(part)):
            logits_1V = _forward(
                model, torch.tensor(part, device=device), positions, plan, keep=torch.tensor([len(part) - 1])
            )
        if done.keys_values:
            old = done.keys_values
            computed = [
                (torch.cat([k, more_k], 2), torch.cat([v, more_v], 2))
                for (k, v), (more_k, more_v) in zip(old, computed, strict=True)
            ]
        done.keys_values, done.end = computed, done.end + len(part)
        done.ids += part
    prefix.keys_values = done.keys_values
    return logits_1V[0].float()


def _forward(
    model: PreTrainedModel,
    ids_N: torch.Tensor,
    positions_N: torch.Tensor,
    plan: Plan,
    *,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits of the new tokens at `keep` (None: all), [., V]."""
    kept: dict[str, torch.Tensor] = {} if keep is None else {"logits_to_keep": keep.to(ids_N.device)}
    with _attention(model):
        output = model(
            input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False, generation_plan=plan, **kept
        )
    return output.logits[0]


@contextmanager
def _attention(model: PreTrainedModel) -> Iterator[None]:
    """Make the model use our attention. Sets the attribute, as `set_attn_implementation` takes longer than a step."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
