"""Reverse KL from a teacher that names only its most likely ids: exact for these, sampled for the rest.

Shapes: C loss positions of one chunk, V ids, K ids that the teacher names. p teacher, q student, y the sampled token.

For texts that the student has just sampled from q, with a teacher on a server. With a(v) = log(q(v) / p(v)), the gradient of
KL(q, p) is the sum over v of q(v) a(v) times the gradient of log q(v). The teacher's K ids, which hold nearly all of the
mass, are summed; the others count if they were sampled, a(y) times the gradient of log q(y), whose mean over y is their sum.
So there is no bias, and the noise is that of the rest alone. A baseline b is taken off every a, which changes no mean: the
divergence over the K ids and a bucket for all others, as in "vOPD" (arXiv 2605.07865).
"""

from __future__ import annotations

import torch

from distill_lab.errors import UserError
from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets, Scored
from distill_lab.train.objectives._divergence import TINY

SIGNALS = ("scored",)


def chunk_loss(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
    """Sum over C of an estimate of KL(q, p), and the estimate of its gradient; both are right in the mean over y."""
    scored = targets.signal
    if not isinstance(scored, Scored):
        raise UserError("sampled_reverse_kl learns from a teacher on a server; use reverse_kl, which is exact")
    labels_C1 = targets.labels_C[:, None]
    log_q_CV = torch.log_softmax(logits_CV, -1, out=logits_CV)
    log_q_C1 = log_q_CV.gather(1, labels_C1)
    top_log_q_CK = log_q_CV.gather(1, scored.top.ids_CK)
    top_q_CK = top_log_q_CK.exp()
    rest_C1 = (1 - top_q_CK.sum(1, keepdim=True)).clamp_min(TINY)
    top_ratio_CK = top_log_q_CK - scored.top.log_p_CB[:, :-1]
    in_rest_C1 = rest_C1 * (rest_C1.log() - scored.top.log_p_CB[:, -1:])
    top_kl_C1 = (top_q_CK * top_ratio_CK).sum(1, keepdim=True)
    baseline_C1 = top_kl_C1 + in_rest_C1
    outside_C1 = (scored.top.ids_CK != labels_C1).all(1, keepdim=True).to(log_q_C1.dtype)
    ratio_C1 = outside_C1 * (log_q_C1 - scored.log_p_C[:, None])
    # Each summand w * grad log q(v) is w * (one-hot(v) - q) for the logits.
    top_weight_CK = top_q_CK * (top_ratio_CK - baseline_C1)
    sampled_C1 = ratio_C1 - outside_C1 * baseline_C1
    kd, ce = (top_kl_C1 + ratio_C1).sum(), -log_q_C1.sum()
    q_CV = log_q_CV.exp_()
    grad_CV = q_CV.mul_(-(top_weight_CK.sum(1, keepdim=True) + sampled_C1))
    grad_CV.scatter_add_(1, scored.top.ids_CK, top_weight_CK).scatter_add_(1, labels_C1, sampled_C1)
    return ChunkLoss(kd, grad_CV, {"kd": kd, "ce": ce})
