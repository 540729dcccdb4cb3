"""Acceptance: the student becomes a draft whose tokens the teacher accepts in speculative decoding.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

A draft's token is accepted with probability a = sum min(p, q) = 1 - TV, the total variation. TV alone has no slope where
the two are far apart, so the loss is w KL(p, q) + (1 - w) TV with w = exp(-eta a), which goes from KL to TV as a rises; w is
not differentiated. Source: "LK Losses" (arXiv 2602.23881), the hybrid form, eta 3.
"""

from __future__ import annotations

import functools
from typing import Annotated

import torch
from pydantic import Field

from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets
from distill_lab.train.objectives._divergence import CeWeight, Temperature, chunk_divergence, dot

SIGNALS = ("logits", "top_k")


def chunk_loss(
    logits_CV: torch.Tensor,
    targets: ChunkTargets,
    *,
    eta: Annotated[float, Field(ge=0)] = 3.0,
    temperature: Temperature = 1.0,
    ce_weight: CeWeight = 0.0,
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`. eta: how fast KL gives way to TV; 0 is forward KL."""
    divergence = functools.partial(acceptance, eta=eta)
    return chunk_divergence(logits_CV, targets, divergence, temperature=temperature, ce_weight=ce_weight)


def acceptance(log_q_CV: torch.Tensor, log_p_CV: torch.Tensor, *, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope g of TV is 1 if q > p, else 0; the gradient of KL is q - p."""
    p_CV = log_p_CV.exp()
    kl_C = dot(p_CV, log_p_CV) - dot(p_CV, log_q_CV)
    q_CV = log_q_CV.exp_()
    above_CV = (q_CV > p_CV).to(q_CV.dtype)
    accepted_C = torch.minimum(p_CV, q_CV).sum(1)
    weight_C1 = torch.exp(-eta * accepted_C)[:, None]
    value_C = weight_C1[:, 0] * kl_C + (1 - weight_C1[:, 0]) * (1 - accepted_C)
    slope_CV = above_CV.sub_(dot(q_CV, above_CV)[:, None]).mul_(1 - weight_C1).add_(weight_C1)
    return value_C, q_CV.mul_(slope_CV).sub_(p_CV.mul_(weight_C1))
