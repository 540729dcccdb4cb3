"""Forward KL, KL(p, q) = sum p log(p / q): the student covers everything the teacher does.

Shapes: C loss positions of one chunk, V ids, M draws. p teacher, q student.

For a teacher's or a data set's texts. The only one of these objectives that needs no more than draws from p: its gradient,
q - p, is linear in p, so draws instead of p leave its mean as it is. Its source is Hinton et al. 2015, section 2.
"""

from __future__ import annotations

import torch

from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets, Draws
from distill_lab.train.objectives._divergence import CeWeight, Temperature, chunk_divergence, dot

SIGNALS = ("logits", "top_k", "draws")


def chunk_loss(
    logits_CV: torch.Tensor, targets: ChunkTargets, *, temperature: Temperature = 1.0, ce_weight: CeWeight = 0.0
) -> ChunkLoss:
    """Sum over C; see `_divergence.chunk_divergence`."""
    if isinstance(targets.signal, Draws):
        return _from_draws(logits_CV, targets.labels_C, targets.signal, temperature, ce_weight)
    return chunk_divergence(logits_CV, targets, forward_kl, temperature=temperature, ce_weight=ce_weight)


def forward_kl(log_q_CV: torch.Tensor, log_p_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slope g is -p / q, so the gradient is q - p."""
    p_CV = log_p_CV.exp()
    value_C = dot(p_CV, log_p_CV) - dot(p_CV, log_q_CV)
    return value_C, log_q_CV.exp_().sub_(p_CV)


def _from_draws(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, draws: Draws, temperature: float, ce_weight: float
) -> ChunkLoss:
    """Cross-entropy with the draws, less the teacher's entropy: its mean over the draws is the divergence."""
    labels_C1 = labels_C[:, None]
    weights_M, places_M = draws.weights_M, draws.positions_M * logits_CV.shape[1] + draws.ids_M
    ce_C = ce_grad_CV = None
    if temperature != 1.0:
        ce_C = torch.logsumexp(logits_CV, 1) - logits_CV.gather(1, labels_C1)[:, 0]
        ce_grad_CV = torch.softmax(logits_CV, -1) if ce_weight else None
        logits_CV.div_(temperature)
    best_C, label_C = logits_CV.amax(1), logits_CV.gather(1, labels_C1)[:, 0]
    drawn = (weights_M * logits_CV.flatten()[places_M]).sum()
    q_CV = torch.softmax(logits_CV, -1, out=logits_CV)
    lse_C = best_C - q_CV.amax(1).log()  # q of the best logit is at least 1 / V
    kd = temperature**2 * ((draws.total_C * lse_C).sum() - drawn - draws.entropy_C.sum())
    ce = (lse_C - label_C if ce_C is None else ce_C).sum()
    factor = temperature * (1 - ce_weight)
    at_label_C1 = torch.full_like(labels_C1, -ce_weight, dtype=torch.float32)
    if ce_grad_CV is not None:
        q_CV.mul_((factor * draws.total_C)[:, None]).add_(ce_grad_CV, alpha=ce_weight)
    elif draws.is_partial or temperature != 1.0:
        q_CV.mul_((factor * draws.total_C + (ce_weight if temperature == 1.0 else 0.0))[:, None])
    q_CV.view(-1).index_add_(0, places_M, weights_M, alpha=-factor)
    if ce_weight:
        q_CV.scatter_add_(1, labels_C1, at_label_C1)
    return ChunkLoss((1 - ce_weight) * kd + ce_weight * ce, q_CV, {"kd": kd, "ce": ce})
