"""What the objectives that compare with a teacher share: the math of one chunk, whatever form the teacher's signal has.

Shapes: C loss positions of one chunk, V ids that student and teacher share, K ids that a top-k signal names, M draws.

p are the teacher's probabilities, q the student's, z its logits. Every objective here is a function D of q alone, with the
slope g = dD/dq, and the softmax turns that into dD/dz = q * (g - <q, g>). A divergence therefore is a short function of the
two log-probabilities. It sees the whole vocabulary, or K ids and one bucket for all others: the chain rule is the same,
and an id in the bucket gets its share q / q_bucket of the bucket's gradient.

With a temperature T both sets of logits are divided by T, and D is multiplied by T squared so that its gradient keeps its
size (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2). The loss is then
(1 - ce_weight) * T^2 * D + ce_weight * cross-entropy with the next token, which is always taken at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from pydantic import Field

from distill_lab.errors import UserError
from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets, Draws, SeveralTopK, TopK

Temperature = Annotated[float, Field(gt=0, le=100)]
"""Both sets of logits are divided by it; 1 compares the distributions themselves."""
CeWeight = Annotated[float, Field(ge=0, le=1)]
"""Share of cross-entropy with the next token in the loss."""
Divergence = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""`divergence(log_q_CV, log_p_CV)` -> D at each position, [C], and its gradient for the student's logits, [C, V].
Both arguments may be overwritten; the gradient may lie in their memory."""
CPU_BLOCK = 1 << 20
"""Logits that a CPU works on at once: all passes over them find them in its cache, which halves their cost."""
TINY = 1e-38
"""Where both probabilities of a mixture underflow, it is this instead of 0, whose logarithm would be infinite."""


def dot(left_CV: torch.Tensor, right_CV: torch.Tensor) -> torch.Tensor:
    """Sum over V of the products, [C], without a tensor of them."""
    return torch.linalg.vecdot(left_CV, right_CV)


def chunk_divergence(
    logits_CV: torch.Tensor,
    targets: ChunkTargets,
    divergence: Divergence,
    *,
    temperature: float,
    ce_weight: float,
) -> ChunkLoss:
    """The divergence from the teacher and the cross-entropy of one chunk, mixed; `kd` and `ce` apart as metrics.

    Raises UserError if there is no teacher, or one of whose distributions only draws are known.
    """
    signal = targets.signal
    if isinstance(signal, Draws):
        raise UserError(
            "this objective needs the teacher's probability of every id the student may choose, and a sampled cache has "
            "draws only; use forward_kl, --train.teacher-cache.mode top_k or hidden, or a teacher without a cache"
        )
    if not isinstance(signal, (torch.Tensor, TopK, SeveralTopK)):
        raise UserError("this objective compares with a teacher, and there is none; give --train.teacher.model")
    sums = logits_CV.new_zeros(2)
    for part in blocks(logits_CV):
        kd_C, ce_C = _block(
            logits_CV[part],
            targets.labels_C[part],
            signal[part] if isinstance(signal, torch.Tensor) else signal.at(part),
            divergence,
            temperature,
            ce_weight,
        )
        sums += torch.stack([kd_C.sum(), ce_C.sum()])
    kd, ce = sums
    return ChunkLoss((1 - ce_weight) * kd + ce_weight * ce, logits_CV, {"kd": kd, "ce": ce})


def blocks(logits_CV: torch.Tensor) -> Iterator[slice]:
    """Positions that are worked on at once: on a CPU CPU_BLOCK logits, elsewhere all."""
    rows, vocabulary = logits_CV.shape
    size = rows if logits_CV.device.type != "cpu" else max(1, CPU_BLOCK // vocabulary)
    for start in range(0, rows, max(1, size)):
        yield slice(start, start + size)


def _block(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    signal: torch.Tensor | TopK | SeveralTopK,
    divergence: Divergence,
    temperature: float,
    ce_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence and cross-entropy of each position; the logits become the gradient of their mixture."""
    labels_C1 = labels_C[:, None]
    ce_grad_CV = None
    if temperature != 1.0:
        ce_C = torch.logsumexp(logits_CV, 1) - logits_CV.gather(1, labels_C1)[:, 0]
        if ce_weight:
            ce_grad_CV = torch.softmax(logits_CV, -1)
        logits_CV.div_(temperature)
        log_q_CV = torch.log_softmax(logits_CV, -1, out=logits_CV)
    else:
        # In place: the kernels read a row before they write it.
        log_q_CV = torch.log_softmax(logits_CV, -1, out=logits_CV)
        ce_C = -log_q_CV.gather(1, labels_C1)[:, 0]
        if ce_weight:
            ce_grad_CV = log_q_CV.exp()
    if isinstance(signal, SeveralTopK):
        kd_C, grad_CV = torch.zeros_like(ce_C), torch.zeros_like(log_q_CV)
        for each in signal.teachers:
            value_C, slope_CV = on_buckets(log_q_CV.clone(), each, divergence)
            kd_C, grad_CV = kd_C + value_C, grad_CV.add_(slope_CV)
    elif isinstance(signal, TopK):
        kd_C, grad_CV = on_buckets(log_q_CV, signal, divergence)
    else:
        if temperature != 1.0:
            signal.div_(temperature)
        kd_C, grad_CV = divergence(log_q_CV, torch.log_softmax(signal, -1, out=signal))
    kd_C = kd_C * temperature**2
    if (factor := (1 - ce_weight) * temperature) != 1.0:
        grad_CV *= factor
    if ce_grad_CV is not None:
        ce_grad_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=torch.float32))
        grad_CV.add_(ce_grad_CV, alpha=ce_weight)
    if grad_CV.data_ptr() != logits_CV.data_ptr():
        logits_CV.copy_(grad_CV)
    return kd_C, ce_C


def on_buckets(log_q_CV: torch.Tensor, top: TopK, divergence: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of K ids and a bucket of all others, which is at most the whole one; its gradient for all V.

    Both are 0 at positions of which the teacher says nothing.
    """
    top_log_q_CK = log_q_CV.gather(1, top.ids_CK)
    q_CV = log_q_CV.exp_()
    rest_CV = q_CV.scatter_(1, top.ids_CK, 0.0)
    rest_C1 = rest_CV.sum(1, keepdim=True).clamp_min_(TINY)
    value_C, grad_CB = divergence(torch.cat([top_log_q_CK, rest_C1.log()], 1), top.log_p_CB.clone())
    rest_CV.mul_(grad_CB[:, -1:] / rest_C1)
    grad_CV = rest_CV.scatter_(1, top.ids_CK, grad_CB[:, :-1])
    if top.known_C is None:
        return value_C, grad_CV
    return value_C * top.known_C, grad_CV.mul_(top.known_C[:, None])
