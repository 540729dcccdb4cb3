"""Cross-entropy with the next token: logits and labels of one chunk -> nats and the gradient of the logits.

Shapes: C loss positions of one chunk, V vocabulary.
"""

from __future__ import annotations

import torch

from distill_lab.train.objectives._contract import ChunkLoss, ChunkTargets


def chunk_loss(logits_CV: torch.Tensor, targets: ChunkTargets) -> ChunkLoss:
    """Sum over C of -log softmax(logits)[label]; the gradient is softmax(logits) minus 1 at the label."""
    labels_C1 = targets.labels_C[:, None]
    best_C1, label_C1 = logits_CV.amax(1, keepdim=True), logits_CV.gather(1, labels_C1)
    # In place: the kernels read a row before they write it.
    probs_CV = torch.softmax(logits_CV, -1, out=logits_CV)
    # log sum exp = best logit - log p(best); p(best) is at least 1 / V, where p(label) may underflow to 0.
    total = (best_C1 - probs_CV.amax(1, keepdim=True).log() - label_C1).sum()
    return ChunkLoss(total, probs_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=torch.float32)))
