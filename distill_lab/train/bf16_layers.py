"""The pieces of a transformer layer with bf16 products over fp32 weights, for CPUs: tensors in, tensors out, differentiable.

Shapes: N tokens (any leading dimensions), I inputs and O outputs of a linear layer, H hidden size.

Under autocast torch casts every weight for every pass, makes a second gradient of the weight's size to add it to the first,
and walks whole activations once for each elementwise step. On a CPU, where the products themselves become cheap in bf16,
that traffic is what is left. Here weights come as bf16 copies made once per optimizer step, gradients are added to the
fp32 ones a cache's worth at a time, and elementwise work is done in fp32 on slices that stay in the cache, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from distill_lab.train.autograd_context import Context
from distill_lab.train.gradients import add_rounded

SLICE = 1 << 17
"""Elements that elementwise work is done on at once: half a MB in fp32, so that a few such tensors fit the cache."""


def linear(
    hidden_NI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    copy_OI: torch.Tensor,
    *,
    in_place: bool,
) -> torch.Tensor:
    """`hidden @ weight.T + bias` in bf16, multiplied by `copy_OI`, the bf16 copy of `weight_OI`.

    in_place: the weight's gradient is added to `weight_OI.grad` (fp32) in the backward pass, and autograd gets none; for
    one process alone, as `loss_module.add_embedding_gradients_in_place`.
    """
    result: torch.Tensor = _Linear.apply(hidden_NI, weight_OI, bias_O, copy_OI, in_place)
    return result


def swiglu(gate_NI: torch.Tensor, up_NI: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` (Shazeer 2020, "GLU Variants"), computed in fp32, in the inputs' type."""
    result: torch.Tensor = _SwiGLU.apply(gate_NI, up_NI)
    return result


def rms_norm(hidden_NH: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> torch.Tensor:
    """`weight * hidden / sqrt(mean(hidden^2) + epsilon)` (Zhang and Sennrich 2019), computed in fp32, in bf16."""
    result: torch.Tensor = _RMSNorm.apply(hidden_NH, weight_H, epsilon)
    return result


class _LinearContext(Context, Protocol):
    dtype: torch.dtype
    weight_OI: torch.Tensor
    copy_OI: torch.Tensor
    in_place: bool


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _LinearContext,
        hidden: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        copy_OI: torch.Tensor,
        in_place: bool,
    ) -> torch.Tensor:
        ctx.dtype, ctx.weight_OI, ctx.copy_OI, ctx.in_place = hidden.dtype, weight_OI, copy_OI, in_place
        hidden = hidden.to(copy_OI.dtype)
        ctx.save_for_backward(hidden)
        return F.linear(hidden, copy_OI, None if bias_O is None else bias_O.to(copy_OI.dtype))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: _LinearContext, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        (hidden,), weight_OI = ctx.saved_tensors, ctx.weight_OI
        grad_NO = grads[0].to(ctx.copy_OI.dtype).reshape(-1, grads[0].shape[-1])
        grad_hidden = grad_weight_OI = grad_bias_O = None
        if needs_hidden:
            grad_hidden = (grad_NO @ ctx.copy_OI).view(hidden.shape).to(ctx.dtype)
        if needs_weight:
            rounded_OI = grad_NO.T @ hidden.reshape(-1, hidden.shape[-1])
            if not ctx.in_place:
                grad_weight_OI = rounded_OI.to(weight_OI.dtype)
            elif weight_OI.grad is None:
                weight_OI.grad = rounded_OI.to(weight_OI.dtype)
            else:
                add_rounded(weight_OI.grad, rounded_OI)
        if needs_bias:
            grad_bias_O = grad_NO.sum(0, dtype=weight_OI.dtype)
        return grad_hidden, grad_weight_OI, grad_bias_O, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        result = torch.empty(gate.shape, dtype=gate.dtype)
        for gate_, up_, out in _slices(gate, up, result):
            out.copy_(F.silu(gate_.float()).mul_(up_))
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, *grads: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = (torch.empty(each.shape, dtype=each.dtype) for each in (gate, up))
        for gate_, up_, grad_, out_gate, out_up in _slices(gate, up, grads[0], grad_gate, grad_up):
            # silu(g) = g s with s = sigmoid(g); its slope is s (1 + g (1 - s)) = s + silu(g) (1 - s).
            wide, grad = gate_.float(), grad_.float()
            sigmoid = wide.sigmoid()
            silu = wide * sigmoid
            out_up.copy_(silu * grad)
            slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
            out_gate.copy_(slope.mul_(grad).mul_(up_))
        return grad_gate, grad_up


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, hidden: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> torch.Tensor:
        result = torch.empty(hidden.shape, dtype=torch.bfloat16)
        scale = torch.empty((*hidden.shape[:-1], 1))
        for hidden_, scale_, out in _slices(hidden, scale, result):
            wide = hidden_.float()
            torch.rsqrt((wide * wide).mean(-1, keepdim=True) + epsilon, out=scale_)
            out.copy_((wide * scale_).mul_(weight_H))
        ctx.save_for_backward(hidden, weight_H, scale)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Context, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        hidden, weight_H, scale = ctx.saved_tensors
        grad_hidden, grad_weight_H = torch.empty(hidden.shape, dtype=hidden.dtype), None
        if ctx.needs_input_grad[1]:
            grad_weight_H = torch.zeros_like(weight_H, dtype=torch.float32)
        for hidden_, scale_, grad_, out in _slices(hidden, scale, grads[0], grad_hidden):
            # With n = x r, r = (mean(x^2) + epsilon)^-1/2 and d = weight * grad: dx = r (d - n mean(d n)).
            grad = grad_.float()
            normed = hidden_ * scale_
            if grad_weight_H is not None:
                grad_weight_H += (grad * normed).sum(0)
            slope = grad * weight_H
            mean = (slope * normed).mean(-1, keepdim=True)
            out.copy_(slope.addcmul_(normed, mean, value=-1).mul_(scale_))
        return grad_hidden, None if grad_weight_H is None else grad_weight_H.to(weight_H.dtype), None


def _slices(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of the same leading dimensions as matrices, some rows of each at a time."""
    matrices = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    rows = max(1, SLICE // matrices[0].shape[1])
    return zip(*(matrix.split(rows) for matrix in matrices), strict=True)
