"""A batch whose rows join and leave at any time, all fresh tokens in one line: no padding but what attention needs.

    batch = FlatBatch(model, choice, ...)
    for row, token in batch.join(rows): ...         # prefixes that are shared are computed by the first to come
    for row, token in batch.step(): ...

Serves decoders whose layers are plain attention over all that came before (`is_suitable`).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill_lab import activity
from distill_lab.generation.decoding.attention import NAME, Group, Plan, Prefill, Shared, Step, Unsuitable
from distill_lab.generation.decoding.choice import Choice
from distill_lab.generation.decoding.cohort import BatchSlab
from distill_lab.generation.decoding.prefixes import Prefix
from distill_lab.generation.decoding.row import Row
from distill_lab.generation.decoding.slices import Slices

EXTRA_BYTES_CPU, EXTRA_BYTES_GPU = 1 << 19, 1 << 26
"""Keys and values that are read in the time of one more attention call (measured on a CPU; launches on a GPU)."""
TRIAL_TOKENS = 8
TRIAL_TOLERANCE = 0.02
"""Largest difference of a logit in the trial, as a share of the largest logit: half precision differs this much."""

OTHER_ATTENTION = "its layers are not all plain attention"


def extra_bytes(device: torch.device) -> int:
    """What one more attention call per layer costs, in bytes of keys and values read."""
    return EXTRA_BYTES_CPU if device.type == "cpu" else EXTRA_BYTES_GPU


def is_suitable(model: PreTrainedModel) -> bool:
    """Whether a model can be decoded here."""
    return not why_not(model)


@torch.inference_mode()
def why_not(model: PreTrainedModel) -> str:
    """Why a model cannot be decoded here; empty where it can. Runs a few tokens through it both ways to be sure."""
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
        logits_V = _compute(model, trial, Slices(first=TRIAL_TOKENS, most=TRIAL_TOKENS), "")
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
    """Rows in the making. bytes_per_token: of keys and values over all layers. room: see `BatchSlab`. slices: None: one."""

    leave_share = 1 / 32
    """Rows that are done leave once they are this share."""
    can_join = True

    def __init__(
        self, model: PreTrainedModel, choice: Choice, *, bytes_per_token: int, room: int, slices: Slices | None = None
    ) -> None:
        self._slices = slices or Slices(first=math.inf, most=sys.maxsize)
        self.rows: list[Row] = []
        self._model, self._choice, self._room = model, choice, room
        self._num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self._most_waste = extra_bytes(model.device) * self._num_layers // bytes_per_token
        """Columns that may be masked in a cohort rather than to have one more."""
        self._cohorts: list[BatchSlab] = []
        self._plan: Step | None = None
        self._ids_N = self._positions_N = torch.empty(0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> list[tuple[Row, int]]:
        """Take in `rows`; each with its next token. A single row that is longer than a slice is read in slices."""
        start = self._slices.clock()
        for row in rows:
            for prefix in reversed(list(row.prefix.path()) if row.prefix else []):
                if not prefix.keys_values:
                    _compute(self._model, prefix, self._slices, "reading the shared prompt")
        self._slices.prefix_seconds += self._slices.clock() - start
        if len(rows) == 1 and rows[0].num_own > self._slices.size:
            return self._join_long(rows[0])
        with self._slices.timed(sum(row.num_own for row in rows)):
            return self._join(rows)

    def _join_long(self, row: Row) -> list[tuple[Row, int]]:
        """All but the last token of `row` as a prefix that it shares with nobody, then the cohort takes both in."""
        own = row.own_ids()
        end = len(row.prompt_ids) + len(row.tokens) - 1
        head = Prefix(own[:-1], row.prefix, end, 0, 1)
        _compute(self._model, head, self._slices, "reading a long prompt")
        cohort = BatchSlab([len(own)], num_layers=self._num_layers, room=self._room)

        def keep(layer: int, keys_1G1D: torch.Tensor, values_1G1D: torch.Tensor) -> None:
            keys_1GTD, values_1GTD = head.keys_values[layer]
            cohort.store(layer, torch.cat([keys_1GTD, keys_1G1D], 2), torch.cat([values_1GTD, values_1G1D], 2))

        group = Group(0, [1], keep, device=self._model.device)
        plan = Prefill([group], [(prefix, None) for prefix in head.path()], num_rows=1)
        ids, positions = self._tensor(own[-1:]), self._tensor([end])
        logits_1V = _forward(self._model, ids, positions, plan, keep=torch.tensor([0]))
        return self._joined([row], [cohort], logits_1V)

    def _join(self, rows: Sequence[Row]) -> list[tuple[Row, int]]:
        rows = sorted(rows, key=lambda row: -row.num_own)
        groups: list[Group] = []
        cohorts: list[BatchSlab] = []
        computed: list[Row] = []
        places: list[int] = []
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
            places += [start + copy for copy in copies]
            cohort = BatchSlab([row.num_own for row in part], num_layers=self._num_layers, room=self._room)
            lengths = [row.num_own for row in computed[start:]]
            twice = copies if len(seen) < len(part) else None
            group = Group(first, lengths, cohort.store, device=self._model.device, copies=twice)
            first += group.num_tokens
            groups.append(group)
            cohorts.append(cohort)
        lengths = [row.num_own for row in computed]
        ids = [token for row in computed for token in row.own_ids()]
        starts = [row.prefix.end if row.prefix else 0 for row in computed]
        positions = [start + place for start, own in zip(starts, lengths, strict=True) for place in range(own)]
        ends = torch.tensor(lengths).cumsum(0) - 1
        plan = Prefill(groups, self._shared(computed, lengths), num_rows=len(rows))
        logits_RV = _forward(self._model, self._tensor(ids), self._tensor(positions), plan, keep=ends)
        if places != list(range(len(rows))):
            logits_RV = logits_RV[self._tensor(places)]
        return self._joined(rows, cohorts, logits_RV)

    def _joined(self, rows: list[Row], cohorts: list[BatchSlab], logits_RV: torch.Tensor) -> list[tuple[Row, int]]:
        next_N = self._choice.join(rows, logits_RV)
        self._ids_N = torch.cat([self._ids_N, next_N])
        lengths_N = self._tensor([len(row.prompt_ids) + len(row.tokens) for row in rows])
        self._positions_N = torch.cat([self._positions_N, lengths_N])
        self.rows += rows
        self._cohorts += cohorts
        self._plan = None
        return list(zip(rows, next_N.tolist(), strict=True))

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, int]]:
        """The next token of every row."""
        if self._plan is None:
            self._merge()
            self._plan = Step(self._cohorts, self._shared(self.rows, None))
        for cohort in self._cohorts:
            cohort.make_room()
        logits_NV = _forward(self._model, self._ids_N, self._positions_N, self._plan)
        for cohort in self._cohorts:
            cohort.length += 1
        self._ids_N = self._choice.next(self.rows, logits_NV)
        self._positions_N = self._positions_N + 1
        return list(zip(self.rows, self._ids_N.tolist(), strict=True))

    @torch.inference_mode()
    def leave(self) -> None:
        """Take the rows that are done out."""
        order: list[int] = []
        first = 0
        for cohort in self._cohorts:
            size = len(cohort)
            done = [place for place in range(size) if self.rows[first + place].done]
            kept = cohort.leave(done) if done else range(size)
            order += [first + place for place in kept]
            first += size
        self._cohorts = [cohort for cohort in self._cohorts if len(cohort)]
        self._reorder(order)

    def _reorder(self, order: list[int]) -> None:
        self.rows = [self.rows[place] for place in order]
        index = self._tensor(order)
        self._ids_N, self._positions_N = self._ids_N[index], self._positions_N[index]
        self._choice.keep(index)
        self._plan = None

    def _merge(self) -> None:
        """Join cohorts as long as one attention call less is worth more than the columns that are then masked."""
        while len(self._cohorts) > 1:
            by_length = sorted(range(len(self._cohorts)), key=lambda number: -self._cohorts[number].length)
            waste, into, taken = min(
                (len(self._cohorts[two]) * (self._cohorts[one].length - self._cohorts[two].length), one, two)
                for one, two in pairwise(by_length)
            )
            if waste > self._most_waste:
                return
            firsts = [0]
            for cohort in self._cohorts:
                firsts.append(firsts[-1] + len(cohort))
            self._cohorts[into].absorb(self._cohorts[taken])
            order = []
            for number in range(len(self._cohorts)):
                if number != taken:
                    order += range(firsts[number], firsts[number + 1])
                if number == into:
                    order += range(firsts[taken], firsts[taken + 1])
            del self._cohorts[taken]
            self._reorder(order)

    def _alike(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows, longest first, in parts whose padding costs less than one more part."""
        part: list[Row] = []
        waste = 0
        for row in rows:
            waste += part[0].num_own - row.num_own if part else 0
            if part and waste > self._most_waste:
                yield part
                part, waste = [], 0
            part.append(row)
        if part:
            yield part

    def _shared(self, rows: Sequence[Row], lengths: Sequence[int] | None) -> Shared:
        """The prefixes of `rows`, and which fresh tokens look at each; lengths: fresh tokens per row, None: one."""
        tokens: dict[Prefix, list[int]] = {}
        first = 0
        for place, row in enumerate(rows):
            size = lengths[place] if lengths else 1
            for prefix in row.prefix.path() if row.prefix else ():
                tokens.setdefault(prefix, []).extend(range(first, first + size))
            first += size
        return [(prefix, None if len(own) == first else self._tensor(own)) for prefix, own in tokens.items()]

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._model.device)


def _compute(model: PreTrainedModel, prefix: Prefix, slices: Slices, what: str) -> torch.Tensor:
    """Keys and values of a prefix in slices, those before it being there. Returns its last token's logits, fp32 [V]."""
    device, first = model.device, prefix.end - len(prefix.ids)
    done = Prefix([], prefix.parent, first, 0, 1)
    logits_1V = torch.empty(0)
    for part in slices.of(prefix.ids):
        held: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(layer: int, keys_1GPD: torch.Tensor, values_1GPD: torch.Tensor) -> None:
            if layer != len(held):  # noqa: B023 - called within this turn
                raise Unsuitable
            held.append((keys_1GPD.contiguous(), values_1GPD.contiguous()))  # noqa: B023

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
            held = [
                (torch.cat([k, more_k], 2), torch.cat([v, more_v], 2))
                for (k, v), (more_k, more_v) in zip(old, held, strict=True)
            ]
        done.keys_values, done.end = held, done.end + len(part)
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
    """Logits of the fresh tokens at `keep` (None: all), [., V]."""
    kept: dict[str, Any] = {} if keep is None else {"logits_to_keep": keep.to(ids_N.device)}
    with _attention(model):
        output = model(
            input_ids=ids_N[None], position_ids=positions_N[None], use_cache=False, generation_plan=plan, **kept
        )
    return output.logits[0]


@contextmanager
def _attention(model: PreTrainedModel) -> Iterator[None]:
    """The model with our attention. Set as the attribute it is: `set_attn_implementation` takes longer than a step."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
