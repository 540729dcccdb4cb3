"""Gradients added to `weight.grad` in place, where autograd would make a second tensor of the weight's size first.

Shapes: V rows of an embedding, H hidden size, T tokens, R rows and C columns of any matrix, I inputs, O outputs.

For one process alone: DDP and FSDP wait for the gradients that autograd accumulates.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from distill_lab.train.autograd_context import Context

CPU_BLOCK = 1 << 20
"""Elements of a gradient in half precision that a CPU adds to the fp32 one at once: they stay in its cache."""


def gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """`weight.grad`, made of zeros if there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add_rounded(total_RC: torch.Tensor, part_RC: torch.Tensor) -> None:
    """Add a gradient in half precision to one in fp32, in place. On a CPU in blocks: torch would first cast all of it."""
    for total, part in zip(_blocks(total_RC), _blocks(part_RC), strict=True):
        total.add_(part)


def add_product(total_OI: torch.Tensor, grad_CO: torch.Tensor, input_CI: torch.Tensor, scale: float) -> None:
    """`total += scale * grad.T @ input`: the product in the inputs' type, the sum in `total`'s, in place."""
    if grad_CO.dtype == total_OI.dtype:
        total_OI.addmm_(grad_CO.T, input_CI, alpha=scale)
        return
    rows = _rows_of_block(total_OI)
    for total, grad in zip(total_OI.split(rows), grad_CO.split(rows, dim=1), strict=True):
        total.add_(grad.T @ input_CI, alpha=scale)


def look_up(ids: torch.Tensor, weight_VH: torch.Tensor, padding: int | None) -> torch.Tensor:
    """`weight[ids]`. The backward pass adds to `weight.grad` row by row, except to the row `padding`."""
    result: torch.Tensor = _Lookup.apply(weight_VH, ids, padding)
    return result


class _LookupContext(Context, Protocol):
    weight_VH: torch.Tensor
    padding: int | None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _LookupContext, weight_VH: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        ctx.weight_VH, ctx.padding = weight_VH, padding
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight_VH)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _LookupContext, *grads: torch.Tensor
    ) -> tuple[None, None, None]:
        ids_T, grad_TH = ctx.saved_tensors[0].flatten(), grads[0].flatten(0, -2)
        if ctx.padding is not None:
            kept_T = ids_T != ctx.padding
            ids_T, grad_TH = ids_T[kept_T], grad_TH[kept_T]
        gradient_of(ctx.weight_VH).index_add_(0, ids_T, grad_TH)
        return None, None, None


def _rows_of_block(matrix_RC: torch.Tensor) -> int:
    return len(matrix_RC) if matrix_RC.device.type != "cpu" else max(1, CPU_BLOCK // matrix_RC.shape[1])


def _blocks(matrix_RC: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return matrix_RC.split(_rows_of_block(matrix_RC))
