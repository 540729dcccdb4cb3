"""Jensen-Shannon divergence, generalized: beta KL(p, m) + (1 - beta) KL(q, m) with the mixture m = beta p + (1 - beta) q.

Shapes: C loss positions of one chunk, V ids. p teacher, q student.

For texts that the student wrote itself, if variety matters (pass@k, best of k). It is bounded and has the smallest
gradients of these objectives. Source: Agarwal et al. 2023, "On-Policy Distillation of Language Models", equation 1.
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
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    temperature: Temperature = 1.0,
    ce_weight: CeWeight = 0.0,
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`. beta: the teacher's share of the mixture."""
    divergence = functools.partial(jsd, beta=beta)
    return chunk_divergence(logits_CV, targets, divergence, temperature=temperature, ce_weight=ce_weight)


def jsd(log_q_CV: torch.Tensor, log_p_CV: torch.Tensor, *, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope g is (1 - beta) log(q / m), so the gradient is (1 - beta) q * (log(q / m) - KL(q, m))."""
    p_CV, q_CV = log_p_CV.exp(), log_q_CV.exp()
    log_m_CV = torch.lerp(q_CV, p_CV, beta).clamp_min_(TINY).log_()
    of_teacher_C = dot(p_CV, log_p_CV.sub_(log_m_CV))
    ratio_CV = log_q_CV.sub_(log_m_CV)
    of_student_C = dot(q_CV, ratio_CV)
    value_C = beta * of_teacher_C + (1 - beta) * of_student_C
    return value_C, ratio_CV.sub_(of_student_C[:, None]).mul_(q_CV).mul_(1 - beta)
