"""Reverse KL, KL(q, p) = sum q log(q / p): the student keeps to what the teacher finds likely.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

For texts that the student wrote itself, if one good answer is wanted. Source: Gu et al. 2023, "MiniLLM", equation 2.
"""

from __future__ import annotations

import torch

from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets
from distill_lab.train.objectives._divergence import CeWeight, Temperature, chunk_divergence, dot

SIGNALS = ("logits", "top_k")


def chunk_loss(
    logits_CV: torch.Tensor, targets: ChunkTargets, *, temperature: Temperature = 1.0, ce_weight: CeWeight = 0.0
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`."""
    return chunk_divergence(logits_CV, targets, reverse_kl, temperature=temperature, ce_weight=ce_weight)


def reverse_kl(log_q_CV: torch.Tensor, log_p_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope g is log(q / p) + 1, so the gradient is q * (log(q / p) - D)."""
    ratio_CV = torch.sub(log_q_CV, log_p_CV, out=log_p_CV)
    q_CV = log_q_CV.exp_()
    value_C = dot(q_CV, ratio_CV)
    return value_C, q_CV.mul_(ratio_CV.sub_(value_C[:, None]))
