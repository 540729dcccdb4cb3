"""Chunk likelihood: a student learns from a teacher with another tokenizer, by the text that both can be compared on.

Shapes: C loss positions of the student, D of the teacher, V and W ids of each, S shared ids, K chunks, A of one same token.

A chunk is the shortest piece of text that is whole tokens of both. With a = -log p(chunk) and b = -log q(chunk), sums over
its tokens, p the teacher and q the student, the loss is the KL divergence of two coins that show this chunk or another one:

    D(a, b) = tau * [ P log(P / Q) + (1 - P) log((1 - P) / (1 - Q)) ],   P = exp(-a / tau),  Q = exp(-b / tau)

It is 0 if both find the chunk as likely. With tau = 1 it is the plain KL, whose slope vanishes for chunks that are unlikely
to both; with a large tau it becomes a log(a / b) - a + b, whose slope does not. The gradient is that of a cross-entropy
with the chunk's tokens, weighted with (P - Q) / (1 - Q).
Source: "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching" (arXiv 2503.20083), with tau = 100 as in
its authors' code; the factor tau, which they leave to the learning rate, keeps D in nats.

If a chunk is one token, and both vocabularies have it, more is known than its likelihood: `exact` of the loss there is the
forward KL between whole distributions, over the shared tokens and one bucket for all others. Between two equal tokenizers
every chunk is such a one, and the loss is the objective forward_kl.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from distill_lab.errors import UserError
from distill_lab.train.objectives._contract import ChunkLoss, Chunks, ChunkTargets, TopK
from distill_lab.train.objectives._divergence import TINY, CeWeight, Temperature, blocks, on_buckets
from distill_lab.train.objectives.forward_kl import forward_kl

SIGNALS = ("chunks",)
MIN_NATS = 1e-5
"""Added to a and b: fp32 knows no smaller difference of a probability from 1."""


def chunk_loss(
    logits_CV: torch.Tensor,
    targets: ChunkTargets,
    *,
    tau: Annotated[float, Field(ge=1, le=1e6)] = 100.0,
    exact: Annotated[float, Field(ge=0, le=1)] = 1.0,
    temperature: Temperature = 1.0,
    ce_weight: CeWeight = 0.0,
) -> ChunkLoss:
    """Sum over C of (1 - ce_weight) * temperature^2 * divergence + ce_weight * cross-entropy with the next token.

    tau: above. exact: share of the forward KL in chunks of one same token; 0: likelihoods alone. temperature: divides both
    models' logits. The metric kd is the sum of its two parts, kd_same and kd_chunks.
    """
    found = targets.signal
    if not isinstance(found, Chunks):
        raise UserError(
            "chunk_likelihood compares with a teacher that reads the text itself; give --train.teacher.model, and no "
            "teacher cache"
        )
    labels_C1 = targets.labels_C[:, None]
    ce_C = ce_grad_CV = None
    if temperature != 1.0:
        ce_C = torch.logsumexp(logits_CV, 1) - logits_CV.gather(1, labels_C1)[:, 0]
        ce_grad_CV = torch.softmax(logits_CV, -1) if ce_weight else None
        logits_CV.div_(temperature)
        found.logits_DW.div_(temperature)
    log_q_CV = torch.log_softmax(logits_CV, -1, out=logits_CV)
    log_p_DW = torch.log_softmax(found.logits_DW, -1, out=found.logits_DW)
    log_q_C = log_q_CV.gather(1, labels_C1)[:, 0]
    ce = -log_q_C.sum() if ce_C is None else ce_C.sum()
    value_K, slope_K = binary_kl(
        _sums(log_p_DW.gather(1, found.labels_D[:, None])[:, 0], found.chunk_D, len(found.same_K)),
        _sums(log_q_C, found.chunk_C, len(found.same_K)),
        tau=tau,
    )
    share_K = 1.0 - exact * found.same_K.to(value_K.dtype)
    scale = (1 - ce_weight) * temperature
    # The gradient of -g log q(label) for the logits is g (q - one-hot); cross-entropy is such a one, too.
    weight_C = scale * torch.cat([share_K * slope_K, slope_K.new_zeros(1)])[found.chunk_C]
    if ce_grad_CV is None:
        weight_C = weight_C + ce_weight
    kd_same = _add_gradients(log_q_CV, labels_C1, weight_C, log_p_DW, found, factor=exact * scale)
    if ce_grad_CV is not None:
        ce_grad_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=torch.float32))
        log_q_CV.add_(ce_grad_CV, alpha=ce_weight)
    kd_same = temperature**2 * exact * kd_same
    kd_chunks = temperature**2 * (share_K * value_K).sum()
    kd = kd_same + kd_chunks
    metrics = {"kd": kd, "ce": ce, "kd_same": kd_same, "kd_chunks": kd_chunks}
    return ChunkLoss((1 - ce_weight) * kd + ce_weight * ce, log_q_CV, metrics)


def binary_kl(log_p_K: torch.Tensor, log_q_K: torch.Tensor, *, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """D(a, b) of chunks with these log-likelihoods, and its slope for b, [K]."""
    a_K, b_K = MIN_NATS - log_p_K, MIN_NATS - log_q_K
    not_p_K, not_q_K = -torch.expm1(-a_K / tau), -torch.expm1(-b_K / tau)
    p_K = torch.exp(-a_K / tau)
    value_K = p_K * (b_K - a_K) + tau * not_p_K * torch.log(not_p_K / not_q_K)
    return value_K, (not_q_K - not_p_K) / not_q_K


def _sums(log_probs: torch.Tensor, chunks: torch.Tensor, number: int) -> torch.Tensor:
    """Log-likelihoods of the chunks; tokens of chunk -1 count nowhere."""
    return log_probs.new_zeros(number + 1).index_add_(0, chunks % (number + 1), log_probs)[:number]


def _add_gradients(
    log_q_CV: torch.Tensor,
    labels_C1: torch.Tensor,
    weight_C: torch.Tensor,
    log_p_DW: torch.Tensor,
    found: Chunks,
    *,
    factor: float,
) -> torch.Tensor:
    """Make the logits' gradient of `log_q_CV`, in place; returns the sum of the forward KL in chunks of one same token.

    The gradient is weight * (q - one-hot) at each position, and in addition the forward KL's times `factor` in those chunks.
    """
    place_K = torch.searchsorted(found.chunk_D, torch.arange(len(found.same_K), device=found.chunk_D.device))
    total = log_q_CV.new_zeros(())
    for part in blocks(log_q_CV):
        block_CV, chunk_C = log_q_CV[part], found.chunk_C[part]
        kl_grad_AV, same_A = None, None
        if factor:
            same_A = torch.cat([found.same_K, found.same_K.new_zeros(1)])[chunk_C].nonzero()[:, 0]
            log_p_AW = log_p_DW[place_K[chunk_C[same_A]]]
            kl_A, kl_grad_AV = on_buckets(block_CV[same_A], _buckets(log_p_AW, found.shared), forward_kl)
            total += kl_A.sum()
        block_CV.exp_().mul_(weight_C[part, None]).scatter_add_(1, labels_C1[part], -weight_C[part, None])
        if same_A is not None and kl_grad_AV is not None:
            block_CV.index_add_(0, same_A, kl_grad_AV, alpha=factor)
    return total


def _buckets(log_p_AW: torch.Tensor, shared: torch.Tensor) -> TopK:
    """The teacher's distributions as those of the shared ids, by the student's names, and one bucket for all others."""
    log_p_AS = log_p_AW[:, shared[1]]
    rest_A1 = log_p_AW.exp().index_fill_(1, shared[1], 0.0).sum(1, keepdim=True).clamp_min_(TINY)
    return TopK(shared[0].expand(len(log_p_AW), -1), torch.cat([log_p_AS, rest_A1.log()], 1))
