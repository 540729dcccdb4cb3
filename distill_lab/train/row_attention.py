"""Attention of packed rows, each row for itself: one line of tokens and the rows' boundaries -> outputs, differentiable.

Shapes: T tokens of all rows in one line, H heads, G key-value heads, D head size.

Without FlashAttention, transformers keeps packed rows apart with a mask, and attention then costs every token the whole
width of its bin. Here every row is a causal attention without a mask, over its own tokens alone, and nothing is padded.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from distill_lab.generation.decoding.attention import UNSUPPORTED_ARGUMENTS, Unsuitable

NAME = "distill_lab_rows"
TOLERANCE = 1e-3
"""Largest relative difference of hidden states in the trial, in fp32."""
TRIAL = (7, 5)
"""Tokens of the rows of the trial."""


@torch.no_grad()
def is_suitable(decoder: PreTrainedModel, *, tolerance: float = TOLERANCE) -> bool:
    """Whether the rows of a packed batch have the same hidden states with this attention. Tried, not looked up.

    tolerance: largest relative difference; a decoder in 16 bits rounds more than one in fp32.
    """
    if not getattr(decoder, "_supports_attention_backend", False):
        return False
    device = next(decoder.parameters()).device
    vocabulary = decoder.config.get_text_config().vocab_size
    ids_1T = torch.arange(1, 1 + sum(TRIAL), device=device)[None] * 97 % vocabulary
    positions_1T = torch.cat([torch.arange(length) for length in TRIAL])[None].to(device)
    was_training = decoder.training
    decoder.eval()
    try:
        expected = decoder(input_ids=ids_1T, position_ids=positions_1T, use_cache=False).last_hidden_state
        before = use(decoder)
        try:
            found = decoder(
                input_ids=ids_1T, position_ids=positions_1T, use_cache=False, **boundaries(TRIAL)
            ).last_hidden_state
        finally:
            use(decoder, before)
    except (Unsuitable, TypeError, ValueError):
        return False
    finally:
        decoder.train(was_training)
    return bool((found.float() - expected.float()).norm() < tolerance * expected.float().norm())


def use(decoder: PreTrainedModel, name: str | None = NAME) -> str | None:
    """Let the decoder's layers call the attention `name`; returns the name of the one before."""
    config = decoder.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    return before


def boundaries(lengths: tuple[int, ...] | list[int]) -> dict[str, torch.Tensor | int]:
    """The arguments that tell transformers' models where rows begin; the names are FlashAttention's."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def _forward(
    module: nn.Module,
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls; returns [1, T, H, D]."""
    if cu_seq_lens_q is None or attention_mask is not None or len(query_1HTD) > 1:
        raise Unsuitable
    if any(others.get(name) is not None for name in UNSUPPORTED_ARGUMENTS) or others.get("is_causal") is False:
        raise Unsuitable
    repeats = query_1HTD.shape[1] // key_1GTD.shape[1]
    key_1HTD, value_1HTD = (each.repeat_interleave(repeats, 1) for each in (key_1GTD, value_1GTD))
    lengths = cu_seq_lens_q.diff().tolist()
    # One cast for all rows; the rotation of positions leaves queries and keys wider than values.
    rows = [each.to(value_1HTD.dtype).split(lengths, 2) for each in (query_1HTD, key_1HTD, value_1HTD)]
    outputs = [
        scaled_dot_product_attention(*row, dropout_p=dropout, is_causal=True, scale=scaling).transpose(1, 2)
        for row in zip(*rows, strict=True)
    ]
    return torch.cat(outputs, 1), None


AttentionInterface.register(NAME, _forward)
