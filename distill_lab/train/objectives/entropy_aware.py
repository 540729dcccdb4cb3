"""Entropy-aware: reverse KL, and forward KL too where the teacher itself is unsure what comes next.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

For texts that the student wrote itself. Reverse KL alone lets the student settle on one of several good ways to go on; at
positions where the teacher's entropy is above a threshold, forward KL keeps them all. Source: "Entropy-Aware On-Policy
Distillation" (arXiv 2603.07079).
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
    threshold: Annotated[float, Field(ge=0)] = 0.8,
    temperature: Temperature = 1.0,
    ce_weight: CeWeight = 0.0,
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`. threshold: the teacher's entropy, in nats, above which both count."""
    divergence = functools.partial(entropy_aware, threshold=threshold)
    return chunk_divergence(logits_CV, targets, divergence, temperature=temperature, ce_weight=ce_weight)


def entropy_aware(
    log_q_CV: torch.Tensor, log_p_CV: torch.Tensor, *, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient is q * (log(q / p) - KL(q, p)), plus q - p at unsure positions."""
    p_CV = log_p_CV.exp()
    unsure_C = (-dot(p_CV, log_p_CV) > threshold).to(p_CV.dtype)
    ratio_CV = torch.sub(log_q_CV, log_p_CV, out=log_p_CV)
    q_CV = log_q_CV.exp_()
    reverse_C = dot(q_CV, ratio_CV)
    value_C = reverse_C - unsure_C * dot(p_CV, ratio_CV)
    apart_CV = torch.sub(q_CV, p_CV, out=p_CV).mul_(unsure_C[:, None])
    return value_C, q_CV.mul_(ratio_CV.sub_(reverse_C[:, None])).add_(apart_CV)
