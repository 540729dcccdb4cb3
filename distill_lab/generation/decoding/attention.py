"""Attention of new tokens from many rows, concatenated without padding, to their own past and to shared prefixes.

A plan says which tokens belong to which row; transformers' models pass it on to the attention function registered here.
All rows that share a prefix attend to it in one product, and the result is combined with the attention to their own
tokens by the weights of the two softmaxes (as in Juravsky et al. 2024, "Hydragen").
Shapes: N new tokens, H heads, G key-value heads, D head size; R rows of one group, S tokens of its longest, T columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from distill_lab.generation.decoding.batch_slab import BatchSlab
from distill_lab.generation.decoding.prefixes import Prefix

NAME = "distill_lab_flat"
MAX_SCORES = 1 << 26
"""Maximum attention scores in memory if the device has no kernel that returns the log-sum-exp."""

UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "sinks", "sliding_window", "position_bias", "indices", "block_indices")
"""Arguments of transformers' models that change the attention formula."""

Part = tuple[torch.Tensor, torch.Tensor | None]
"""Attention outputs [..., D], and log-sum-exp of the scores [...] if needed."""
Shared = list[tuple[Prefix, torch.Tensor | None]]
"""Prefixes, each with the indices of new tokens that attend to it (None: all)."""


class Unsuitable(Exception):
    """The model does not call attention in a supported way."""


class Plan(Protocol):
    """What the new tokens of one forward pass attend to."""

    num_rows: int

    def attend(
        self, layer: int, query_1HND: torch.Tensor, keys_1GND: torch.Tensor, values_1GND: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Return outputs [N, H, D] and store the new keys and values."""
        ...


class Step:
    """A decoding step: one new token for each row of `slabs`, in their order."""

    def __init__(self, slabs: Sequence[BatchSlab], shared: Shared) -> None:
        self.num_rows = sum(map(len, slabs))
        self._slabs, self._shared = slabs, shared

    def attend(
        self, layer: int, query_1HND: torch.Tensor, keys_1GND: torch.Tensor, values_1GND: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `Plan`."""
        query_NHD, keys_NGD, values_NGD = (each[0].transpose(0, 1) for each in (query_1HND, keys_1GND, values_1GND))
        heads, groups, size = query_NHD.shape[1], keys_NGD.shape[1], query_NHD.shape[2]
        parts: list[Part] = []
        first = 0
        for slab in self._slabs:
            end = first + len(slab)
            keys_BGTD, values_BGTD = slab.append(layer, keys_NGD[first:end], values_NGD[first:end])
            # The query heads of one group use the same keys.
            query_BGQD = query_NHD[first:end].reshape(-1, groups, heads // groups, size)
            output_BGQD, sums_BGQ = attend(
                query_BGQD, keys_BGTD, values_BGTD, scale, mask=slab.mask(query_NHD), sums=bool(self._shared)
            )
            sums_BH = None if sums_BGQ is None else sums_BGQ.reshape(-1, heads)
            parts.append((output_BGQD.reshape(-1, heads, size), sums_BH))
            first = end
        return with_shared(_concat(parts), query_NHD, self._shared, layer, scale)


class Group:
    """Rows of similar length whose tokens follow one another, starting at index `first`.

    keep(layer, keys_RGSD, values_RGSD): stores the keys and values of the rows, right-aligned in S columns. copies: for
    each stored row, the index of the computed row to copy; None: store each computed row once.
    """

    def __init__(
        self,
        first: int,
        lengths: Sequence[int],
        keep: Callable[[int, torch.Tensor, torch.Tensor], None],
        *,
        device: torch.device,
        copies: Sequence[int] | None = None,
    ) -> None:
        self._first, self._keep = first, keep
        self._shape = len(lengths), max(lengths)
        self.num_tokens = sum(lengths)
        lengths_R1 = torch.tensor(lengths)[:, None]
        starts_R1 = first + lengths_R1.cumsum(0) - lengths_R1
        columns_1S = torch.arange(max(lengths))[None]
        self._left_RS: torch.Tensor | None = None
        self._real: torch.Tensor | None = None
        self._right_RS: torch.Tensor | None = None
        even = len(set(lengths)) == 1
        if not even:
            # Left-aligned, so that the causal mask alone hides the padding.
            self._left_RS = (starts_R1 + columns_1S.minimum(lengths_R1 - 1)).to(device)
            self._real = (columns_1S < lengths_R1).flatten().nonzero()[:, 0].to(device)
        if copies is not None or not even:
            right_RS = starts_R1 + (columns_1S - max(lengths) + lengths_R1).clamp(min=0)
            self._right_RS = (right_RS if copies is None else right_RS[torch.tensor(copies)]).to(device)

    def attend(
        self,
        layer: int,
        query_HND: torch.Tensor,
        keys_GND: torch.Tensor,
        values_GND: torch.Tensor,
        scale: float,
        *,
        sums: bool,
    ) -> Part:
        """Attention of each token to earlier ones in its row: outputs [tokens, H, D], log-sum-exp [tokens, H]."""
        query_RHSD, keys_RGSD, values_RGSD = (
            self._rows(each, self._left_RS) for each in (query_HND, keys_GND, values_GND)
        )
        if self._right_RS is None:
            self._keep(layer, keys_RGSD, values_RGSD)
        else:
            self._keep(layer, self._rows(keys_GND, self._right_RS), self._rows(values_GND, self._right_RS))
        repeats = query_RHSD.shape[1] // keys_RGSD.shape[1]
        if repeats > 1:
            keys_RGSD, values_RGSD = (each.repeat_interleave(repeats, 1) for each in (keys_RGSD, values_RGSD))
        output_RHSD, sums_RHS = attend(query_RHSD, keys_RGSD, values_RGSD, scale, causal=True, sums=sums)
        return self._line(output_RHSD), None if sums_RHS is None else self._line(sums_RHS)

    def _line(self, rows_RHS: torch.Tensor) -> torch.Tensor:
        """[R, H, S, ...] -> [tokens, H, ...]"""
        line_NH = rows_RHS.transpose(1, 2).flatten(0, 1)
        return line_NH if self._real is None else line_NH[self._real]

    def _rows(self, tokens_GND: torch.Tensor, index_RS: torch.Tensor | None) -> torch.Tensor:
        if index_RS is not None:
            # Index whole tokens: the model's memory layout is [N, G, D], with a token's heads next to each other.
            rows_NGD = tokens_GND.transpose(0, 1).index_select(0, index_RS.flatten())
            return rows_NGD.unflatten(0, index_RS.shape).transpose(1, 2)
        return tokens_GND[:, self._first : self._first + self.num_tokens].unflatten(1, self._shape).transpose(0, 1)


class Prefill:
    """All tokens so far of newly added rows, group by group."""

    def __init__(self, groups: Sequence[Group], shared: Shared, *, num_rows: int) -> None:
        self._groups, self._shared, self.num_rows = groups, shared, num_rows

    def attend(
        self, layer: int, query_1HND: torch.Tensor, keys_1GND: torch.Tensor, values_1GND: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """See `Plan`."""
        inputs = query_1HND[0], keys_1GND[0], values_1GND[0]
        sums = bool(self._shared)
        part = _concat([group.attend(layer, *inputs, scale, sums=sums) for group in self._groups])
        return with_shared(part, inputs[0].transpose(0, 1), self._shared, layer, scale)


def with_shared(own: Part, query_NHD: torch.Tensor, shared: Shared, layer: int, scale: float) -> torch.Tensor:
    """Combine the outputs of `own` with attention to the shared prefixes, [N, H, D]. Overwrites `own`."""
    output_NHD, sums_NH = own
    if sums_NH is None:
        return output_NHD
    heads, size = query_NHD.shape[1:]
    for number, (prefix, index) in enumerate(shared):
        keys_1GPD, values_1GPD = prefix.keys_values[layer]
        groups = keys_1GPD.shape[1]
        queries_NHD = query_NHD if index is None else query_NHD[index]
        query_1GQD = queries_NHD.transpose(0, 1).reshape(1, groups, -1, size)
        seen_1GQD, seen_sums_1GQ = attend(query_1GQD, keys_1GPD, values_1GPD, scale)
        assert seen_sums_1GQ is not None
        seen_NHD = seen_1GQD.reshape(heads, -1, size).transpose(0, 1)
        seen_sums_NH = seen_sums_1GQ.reshape(heads, -1).transpose(0, 1)
        own_sums_NH = sums_NH if index is None else sums_NH[index]
        share_NH1 = (seen_sums_NH - own_sums_NH).sigmoid()[:, :, None]
        last = number + 1 == len(shared)
        if index is None:
            output_NHD = _lerp(output_NHD, seen_NHD, share_NH1)
            sums_NH = sums_NH if last else torch.logaddexp(own_sums_NH, seen_sums_NH)
        else:
            output_NHD[index] = _lerp(output_NHD[index], seen_NHD, share_NH1)
            sums_NH[index] = torch.logaddexp(own_sums_NH, seen_sums_NH)
    return output_NHD


def attend(
    query_BHND: torch.Tensor,
    keys_BHTD: torch.Tensor,
    values_BHTD: torch.Tensor,
    scale: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    sums: bool = True,
) -> Part:
    """Softmax attention and, with `sums`, the log-sum-exp of its scores: [B, H, N, D] and fp32 [B, H, N].

    causal: N equals T, and tokens do not attend to later ones. mask: added to the scores.
    """
    if not sums:
        output_BHND = scaled_dot_product_attention(
            query_BHND, keys_BHTD, values_BHTD, attn_mask=mask, is_causal=causal, scale=scale
        )
        return output_BHND, None
    if query_BHND.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query_BHND, keys_BHTD, values_BHTD, is_causal=causal, attn_mask=mask, scale=scale
        )
    return attend_in_parts(query_BHND, keys_BHTD, values_BHTD, scale, mask=mask, causal=causal)


def attend_in_parts(
    query_BHND: torch.Tensor,
    keys_BHTD: torch.Tensor,
    values_BHTD: torch.Tensor,
    scale: float,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> Part:
    """The same computed by formula, some queries at a time, on any device."""
    rows, heads, queries, _ = query_BHND.shape
    columns = keys_BHTD.shape[2]
    size = max(1, MAX_SCORES // (rows * heads * columns))
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for first in range(0, queries, size):
        part_BHND = query_BHND[:, :, first : first + size]
        # Scale first, because the unscaled products might overflow in half precision.
        scores_BHNT = (part_BHND * scale @ keys_BHTD.transpose(2, 3)).float()
        if mask is not None:
            scores_BHNT = scores_BHNT + mask
        if causal:
            later_NT = torch.ones(part_BHND.shape[2], columns, dtype=torch.bool, device=query_BHND.device).triu(
                first + 1
            )
            scores_BHNT = scores_BHNT.masked_fill(later_NT, -torch.inf)
        sums_BHN = scores_BHNT.logsumexp(3)
        weights_BHNT = (scores_BHNT - sums_BHN[..., None]).exp().to(values_BHTD.dtype)
        parts.append((weights_BHNT @ values_BHTD, sums_BHN))
    return torch.cat([output for output, _ in parts], 2), torch.cat([sums for _, sums in parts], 2)


def _lerp(own: torch.Tensor, seen: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Own * (1 - share) + seen * share in the dtype of `own`; computed in fp32 because bf16 has only 8 bits."""
    return own.float().lerp(seen.float(), share).to(own.dtype)


def _concat(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    sums = [sums for _, sums in parts if sums is not None]
    return torch.cat([output for output, _ in parts]), torch.cat(sums) if sums else None


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    generation_plan: Plan | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls: inputs [1, H, N, D], output [1, N, H, D]."""
    layer = getattr(module, "layer_idx", None)
    if generation_plan is None or not isinstance(layer, int) or attention_mask is not None or key.shape != value.shape:
        raise Unsuitable
    if any(others.get(name) is not None for name in UNSUPPORTED_ARGUMENTS):
        raise Unsuitable
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    return generation_plan.attend(layer, query, key, value, scale)[None], None


AttentionInterface.register(NAME, _forward)
