"""An objective over a language-model head, without its logits: hidden states, head and the math of one chunk -> the loss.

Shapes: N loss positions, H hidden size, V vocabulary, C positions of one chunk.

A loss needs logits_NV = hidden_NH @ weight_VH.T, by far the largest tensor of a training step. Here N is walked in chunks.
Each chunk is projected once. Because the loss is a plain sum over positions, its gradient for the hidden states and the
head is known as soon as the chunk's gradient for its logits is: it is computed in the forward pass and only scaled in the
backward pass. No more than one chunk of logits ever exists, and nothing is projected twice. A head that requires no
gradient (LoRA) costs two products instead of three, and a loss without gradients (validation) one.

The dtypes, scale, softcap, bias and the gradient in place are handled here and nowhere else; an objective sees logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from distill_lab.train.gradients import add_product, gradient_of
from distill_lab.train.objectives._contract import (
    ChunkFunction,
    ChunkTargets,
    GroupedSignal,
    Head,
    LossBatch,
    LossOutput,
    Signal,
)

CHUNK_ELEMENTS = 1 << 25
"""Logits of one chunk: 128 MiB in fp32; at Qwen's 151,936 tokens that is 220 positions."""
MIN_CHUNK, MAX_CHUNK = 64, 4096
"""Fewest and most positions of one chunk: few make slow matrix products, and more than this gain nothing."""


def batch_loss(hidden_NH: torch.Tensor, head: Head, batch: LossBatch, *, chunk_loss: ChunkFunction) -> LossOutput:
    """The objective `chunk_loss` over all loss positions of `batch`."""
    return head_loss(
        hidden_NH,
        head.linear.weight,
        batch.labels_N,
        chunk_loss,
        signal=batch.targets,
        bias=head.linear.bias,
        softcap=head.softcap,
        scale=head.scale,
        head_grad_scale=head.grad_scale,
        head_copy_VH=head.copy,
        num_ids=batch.targets.num_ids if batch.targets else None,
    )


def head_loss(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_N: torch.Tensor,
    chunk_loss: ChunkFunction,
    *,
    signal: Signal | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    head_grad_scale: float | None = None,
    head_copy_VH: torch.Tensor | None = None,
    num_ids: int | None = None,
) -> LossOutput:
    """Sum of `chunk_loss` over N: a scalar in fp32, differentiable once, and the sums of its metrics.

    hidden_NH: final hidden states at the loss positions, whose next tokens are labels_N (int64, each in [0, V)).
    weight_VH, bias (shape [V]): the output head; gradients are computed only for what requires them.
    signal: the teacher's, for all N. scale, softcap: as in `Head`; no tanh if softcap is None.
    chunk: positions projected at once; None: as many as fit CHUNK_ELEMENTS. A `GroupedSignal` divides no group.
    head_grad_scale: if given, the head's gradient times this is added to `weight_VH.grad` during the forward pass, and
    autograd gets none: the step then never holds two gradients of the head's size. For a caller that will multiply the loss
    by just this number, in one process alone (DDP and FSDP wait for autograd to accumulate that gradient).
    head_copy_VH: the head in the autocast type, if the caller keeps it: it is then not cast here.
    num_ids: use only so many of the head's first rows, as if it had no others; those get a gradient of exactly 0.

    Matrix products run in the autocast type if autocast is on, all else in fp32. N may be 0: `chunk_loss` then sees one
    chunk without positions, so that its metrics have the same names in every process.
    """
    if chunk is None:
        # With products in half precision on a CPU, walking the head's fp32 gradient once per chunk costs more than they do.
        elements = CHUNK_ELEMENTS if head_copy_VH is None else 2 * CHUNK_ELEMENTS
        chunk = min(max(elements // (num_ids or weight_VH.shape[0]), MIN_CHUNK), MAX_CHUNK)
    head_grad_VH = None
    if not torch.is_grad_enabled():
        # Inside an autograd function their `requires_grad` would still ask for gradients.
        hidden_NH, weight_VH = hidden_NH.detach(), weight_VH.detach()
        bias = bias if bias is None else bias.detach()
    elif head_grad_scale is not None and weight_VH.requires_grad:
        head_grad_VH = gradient_of(weight_VH)
        weight_VH = weight_VH.detach()
    metrics: dict[str, torch.Tensor] = {}
    num_ids = num_ids or weight_VH.shape[0]
    factor = head_grad_scale or 1.0
    walk = _Walk(
        chunk_loss, labels_N, signal, softcap, scale, chunk, num_ids, head_grad_VH, factor, head_copy_VH, metrics
    )
    total: torch.Tensor = _HeadLoss.apply(hidden_NH, weight_VH, bias, walk)
    return LossOutput(total, metrics)


@dataclass(frozen=True)
class _Walk:
    """What the chunks are walked with, besides what may require a gradient."""

    chunk_loss: ChunkFunction
    labels_N: torch.Tensor
    signal: Signal | None
    softcap: float | None
    scale: float
    chunk: int
    num_ids: int
    """V, the head's rows that are used."""
    head_grad_VH: torch.Tensor | None
    """Where the head's gradient, times `head_grad_scale`, is added; None: autograd gets it."""
    head_grad_scale: float
    head_copy_VH: torch.Tensor | None
    metrics: dict[str, torch.Tensor]
    """Filled with the sums of the chunks' metrics."""

    def parts(self) -> Sequence[slice]:
        """The positions that are projected at once."""
        if isinstance(self.signal, GroupedSignal):
            return self.signal.parts(self.chunk)
        return [slice(start, start + self.chunk) for start in range(0, max(1, len(self.labels_N)), self.chunk)]

    def targets(self, part: slice) -> ChunkTargets:
        return ChunkTargets(self.labels_N[part], self.signal if self.signal is None else self.signal.at(part))

    def add_metric(self, name: str, value: torch.Tensor) -> None:
        self.metrics[name] = self.metrics[name] + value if name in self.metrics else value


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, head_VH: torch.Tensor, bias_V: torch.Tensor | None, walk: _Walk
    ) -> torch.Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VH.dtype
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        # Sums over chunks are kept in fp32, whatever the products are computed in.
        grad_hidden_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_head_VH = torch.zeros_like(head_VH, dtype=torch.float32) if needs_head else walk.head_grad_VH
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and needs_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        used = slice(walk.num_ids)
        parts = walk.parts()
        rows = max(len(range(*part.indices(len(hidden_NH)))) for part in parts)
        # One chunk's logits for all chunks: fresh memory of this size costs more than a pass over it.
        buffer_CV = torch.empty((rows, walk.num_ids), dtype=dtype, device=hidden_NH.device)
        copy_VH = walk.head_copy_VH
        with torch.autocast(device, enabled=False):
            weight_VH = (head_VH if copy_VH is None or copy_VH.dtype != dtype else copy_VH)[used].to(dtype)
            for part in parts:
                hidden_CH = hidden_NH[part].to(dtype)
                logits_CV = torch.mm(hidden_CH, weight_VH.T, out=buffer_CV[: len(hidden_CH)]).float()
                logits_CV, slope_CV = as_the_model_has_them(
                    logits_CV, bias_V if bias_V is None else bias_V[used], scale=walk.scale, softcap=walk.softcap
                )
                loss = walk.chunk_loss(logits_CV, walk.targets(part))
                total += loss.total
                for name, value in loss.metrics.items():
                    walk.add_metric(name, value)
                if grad_hidden_NH is None and grad_head_VH is None and grad_bias_V is None:
                    continue
                grad_CV = loss.grad_CV
                if slope_CV is not None:
                    grad_CV *= slope_CV
                if walk.scale != 1.0:
                    grad_CV *= walk.scale
                if grad_bias_V is not None:
                    grad_bias_V[used] += grad_CV.sum(0)
                grad_CV = grad_CV.to(dtype)
                if grad_hidden_NH is not None:
                    grad_hidden_NH[part] = grad_CV @ weight_VH
                if grad_head_VH is not None:
                    add_product(grad_head_VH[used], grad_CV, hidden_CH, walk.head_grad_scale)
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
        return (*grads, None)


def as_the_model_has_them(
    logits_CV: torch.Tensor, bias_V: torch.Tensor | None, *, scale: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits with bias, scale and softcap, in the same memory, and the slope of the softcap; None without one."""
    if bias_V is not None:
        logits_CV += bias_V
    if scale != 1.0:
        logits_CV *= scale
    if softcap is None:
        return logits_CV, None
    logits_CV = logits_CV.div_(softcap).tanh_()
    slope_CV = 1 - logits_CV**2
    logits_CV *= softcap
    return logits_CV, slope_CV
