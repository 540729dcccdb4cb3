"""Skew reverse KL, KL(q, (1 - alpha) p + alpha q): reverse KL that stays finite where the teacher's probability is 0.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

For texts that the student wrote itself. Source: Ko et al. 2024, "DistiLLM", section 3.1.
"""

from __future__ import annotations

import functools
from typing import Annotated

import torch
from pydantic import Field

from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets
from distill_lab.train.objectives._divergence import TINY, CeWeight, Temperature, chunk_divergence, dot

SIGNALS = ("logits", "top_k")


def chunk_loss(
    logits_CV: torch.Tensor,
    targets: ChunkTargets,
    *,
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1,
    temperature: Temperature = 1.0,
    ce_weight: CeWeight = 0.0,
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`. alpha: the student's share of the mixture."""
    divergence = functools.partial(skew_reverse_kl, alpha=alpha)
    return chunk_divergence(logits_CV, targets, divergence, temperature=temperature, ce_weight=ce_weight)


def skew_reverse_kl(
    log_q_CV: torch.Tensor, log_p_CV: torch.Tensor, *, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """With the mixture m, g = log(q / m) - alpha q / m + 1, so the gradient is q * (g - <q, g>)."""
    q_CV = log_q_CV.exp()
    m_CV = torch.lerp(log_p_CV.exp_(), q_CV, alpha).clamp_min_(TINY)
    share_CV = (q_CV / m_CV).mul_(alpha)
    slope_CV = log_q_CV.sub_(m_CV.log_())
    value_C = dot(q_CV, slope_CV)
    slope_CV.sub_(share_CV)
    return value_C, slope_CV.sub_(dot(q_CV, slope_CV)[:, None]).mul_(q_CV)
