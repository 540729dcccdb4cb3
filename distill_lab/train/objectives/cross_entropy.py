"""Cross-entropy of a language-model head without its logits: hidden states, head and labels -> a sum of nats.

Shapes: N trained positions, H hidden, V vocabulary, C positions of one chunk.

The loss needs logits_NV = hidden_NH @ head_VH.T, by far the largest tensor of a training step. Here N is walked in chunks;
each chunk is projected once, and since the loss is a plain sum, the gradient for the hidden states and the head is known
as soon as the chunk's softmax is: it is computed in the forward pass and only scaled in the backward pass. No more than one
chunk of logits ever exists, and nothing is projected twice. A head that does not require a gradient (LoRA) costs two
products instead of three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 25
"""Logits of one chunk: 128 MiB in fp32; at Qwen's 151,936 tokens that is 220 positions."""
MIN_CHUNK, MAX_CHUNK = 64, 4096
"""Fewest and most positions of one chunk: few make slow matrix products, and more than this gain nothing."""
CPU_BLOCK = 1 << 20
"""Elements of a gradient in half precision that a CPU adds to the fp32 one at once: they stay in its cache."""


def loss(
    hidden_NH: torch.Tensor,
    head_weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    head_grad_scale: float | None = None,
    head_copy_VH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over N of -log softmax(logits_N)[labels_N], in nats: a scalar in fp32, differentiable once.

    hidden_NH: final hidden states at the positions that predict labels_N (int64, every one in [0, V)).
    head_weight_VH, bias (shape [V]): the output head; gradients are computed only for what requires them.
    scale, softcap: logits = softcap * tanh(scale * (hidden @ head.T + bias) / softcap); no tanh where softcap is None.
    chunk: positions projected at once; None: as many as fit CHUNK_ELEMENTS.
    head_grad_scale: where given, the head's gradient times this is added to `head_weight_VH.grad` here and now, and autograd
    gets none: the step then never holds two gradients of the head's size. For a caller that will scale the loss by just this
    number, and where nobody waits for autograd to accumulate that gradient (DDP, FSDP).
    head_copy_VH: the head in the autocast type, where the caller keeps it: it is then not cast here.

    Matrix products run in the autocast type where autocast is on, softmax and sums in fp32. N may be 0.
    """
    if chunk is None:
        # With products in half precision on a CPU, walking the head's fp32 gradient once per chunk costs more than they do.
        elements = CHUNK_ELEMENTS if head_copy_VH is None else 2 * CHUNK_ELEMENTS
        chunk = min(max(elements // head_weight_VH.shape[0], MIN_CHUNK), MAX_CHUNK)
    head_grad_VH = None
    if head_grad_scale is not None and head_weight_VH.requires_grad and torch.is_grad_enabled():
        head_grad_VH = gradient_of(head_weight_VH)
        head_weight_VH = head_weight_VH.detach()
    result: Any = _ChunkedCrossEntropy.apply(
        hidden_NH,
        head_weight_VH,
        bias,
        labels_N,
        softcap,
        scale,
        chunk,
        head_grad_VH,
        head_grad_scale,
        head_copy_VH,
    )
    return result


def gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """`weight.grad`, made of zeros where there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add_rounded(total_RC: torch.Tensor, part_RC: torch.Tensor) -> None:
    """Add a gradient in half precision to one in fp32, in place, on a CPU in blocks: torch would first cast all of it."""
    rows = len(part_RC) if part_RC.device.type != "cpu" else max(1, CPU_BLOCK // part_RC.shape[1])
    for total, part in zip(total_RC.split(rows), part_RC.split(rows), strict=True):
        total.add_(part)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        head_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        softcap: float | None,
        scale: float,
        chunk: int,
        added_VH: torch.Tensor | None,
        added_scale: float | None,
        copy_VH: torch.Tensor | None,
    ) -> torch.Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VH.dtype
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        # Sums over chunks are kept in fp32, whatever the products are computed in.
        grad_hidden_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if needs_head else added_VH
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and needs_bias else None
        head_scale = 1.0 if added_scale is None else added_scale
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        rows = min(chunk, len(hidden_NH))
        # One chunk's logits for all chunks: fresh memory of this size costs more than a pass over it.
        buffer_CV = torch.empty((rows, head_VH.shape[0]), dtype=dtype, device=hidden_NH.device)
        with torch.autocast(device, enabled=False):
            weight_VH = head_VH.to(dtype) if copy_VH is None or copy_VH.dtype != dtype else copy_VH
            for start in range(0, len(hidden_NH), chunk):
                part = slice(start, start + chunk)
                hidden_CH, labels_C1 = hidden_NH[part].to(dtype), labels_N[part, None]
                logits_CV = torch.mm(hidden_CH, weight_VH.T, out=buffer_CV[: len(hidden_CH)]).float()
                if bias_V is not None:
                    logits_CV += bias_V
                if scale != 1.0:
                    logits_CV *= scale
                slope_CV = None
                if softcap is not None:
                    logits_CV = logits_CV.div_(softcap).tanh_()
                    slope_CV = 1 - logits_CV**2
                    logits_CV *= softcap
                best_C1, label_C1 = logits_CV.amax(1, keepdim=True), logits_CV.gather(1, labels_C1)
                # In place: the kernels read a row before they write it.
                probs_CV = torch.softmax(logits_CV, -1, out=logits_CV)
                # log sum exp = best logit - log p(best); p(best) is at least 1 / V, where p(label) may underflow to 0.
                total += (best_C1 - probs_CV.amax(1, keepdim=True).log() - label_C1).sum()
                if not (needs_hidden or grad_head_VH is not None or needs_bias):
                    continue
                grad_CV = probs_CV.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=torch.float32))
                if slope_CV is not None:
                    grad_CV *= slope_CV
                if scale != 1.0:
                    grad_CV *= scale
                if grad_bias_V is not None:
                    grad_bias_V += grad_CV.sum(0)
                grad_CV = grad_CV.to(dtype)
                if grad_hidden_NH is not None:
                    grad_hidden_NH[part] = grad_CV @ weight_VH
                if grad_head_VH is not None and dtype == grad_head_VH.dtype:
                    grad_head_VH.addmm_(grad_CV.T, hidden_CH, alpha=head_scale)
                elif grad_head_VH is not None:
                    _add_product(grad_head_VH, grad_CV, hidden_CH, head_scale)
        if needs_head and grad_head_VH is not None:
            grad_head_VH = grad_head_VH.to(head_VH.dtype)
        if grad_bias_V is not None and bias_V is not None:
            grad_bias_V = grad_bias_V.to(bias_V.dtype)
        ctx.save_for_backward(grad_hidden_NH, grad_head_VH if needs_head else None, grad_bias_V)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        # In place: the head's gradient may be gigabytes. A second backward through the same graph is refused by autograd,
        # which sees that saved tensors have changed.
        grads = [saved if saved is None else saved.mul_(grad_outputs[0]) for saved in ctx.saved_tensors]
        return (*grads, None, None, None, None, None, None, None)


def _add_product(total_VH: torch.Tensor, grad_CV: torch.Tensor, hidden_CH: torch.Tensor, scale: float) -> None:
    """`total += scale * grad.T @ hidden`, the product in half precision, the sum in fp32; see `CPU_BLOCK`."""
    rows = len(total_VH) if total_VH.device.type != "cpu" else max(1, CPU_BLOCK // total_VH.shape[1])
    for total, grad in zip(total_VH.split(rows), grad_CV.split(rows, dim=1), strict=True):
        total.add_(grad.T @ hidden_CH, alpha=scale)
