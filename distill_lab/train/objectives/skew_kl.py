"""Skew KL, KL(p, alpha p + (1 - alpha) q): forward KL without its steepest gradients.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

For the teacher's texts. Source: Ko et al. 2024, "DistiLLM", section 3.1.
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
    """Sum over C; see `_divergence.chunk_divergence`. alpha: the teacher's share of the mixture."""
    divergence = functools.partial(skew_kl, alpha=alpha)
    return chunk_divergence(logits_CV, targets, divergence, temperature=temperature, ce_weight=ce_weight)


def skew_kl(log_q_CV: torch.Tensor, log_p_CV: torch.Tensor, *, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """With the mixture m, g = -(1 - alpha) p / m, so the gradient is -(1 - alpha) q * (p / m - <q, p / m>)."""
    p_CV, q_CV = log_p_CV.exp(), log_q_CV.exp_()
    m_CV = torch.lerp(q_CV, p_CV, alpha).clamp_min_(TINY)
    ratio_CV = p_CV / m_CV
    value_C = dot(p_CV, log_p_CV.sub_(m_CV.log_()))
    return value_C, q_CV.mul_(ratio_CV.sub_(dot(q_CV, ratio_CV)[:, None])).mul_(alpha - 1)
