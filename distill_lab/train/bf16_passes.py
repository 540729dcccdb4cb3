"""Passes in bf16 over fp32 weights on a CPU with bf16 units: a model -> the same model, its layers those of `bf16_layers`.

    passes = Bf16Passes(model, in_place=True)
    ...                      # forward and backward under autocast, an optimizer step
    passes.refresh()         # the weights have changed
    passes.remove()

Weights, gradients, the residual stream, norms, softmax and loss stay in fp32; products are in bf16 with sums in fp32. What
is not recognized is left to autocast, which computes the same in more time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import nn

from distill_lab.train import row_attention
from distill_lab.train.bf16_layers import linear, rms_norm, swiglu
from distill_lab.train.loss_module import decoder_and_head

TOLERANCE = 2e-2
"""Largest relative difference between a layer and the one that takes its place: that of bf16."""
SWIGLU = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""Children of the layers of transformers that compute `down(silu(gate(x)) * up(x))`."""


class RmsNorm(nn.Module):
    """A layer that `_is_rms_norm` recognizes, for types alone: each family of models has another class for it."""

    weight: torch.Tensor


class SwiGlu(nn.Module):
    """A layer that `_is_swiglu` recognizes, for types alone."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module


class Bf16Passes:
    """Puts faster layers into a model and takes them out again.

    in_place: weights' gradients are added to `.grad` without autograd, for one process alone. A model with frozen weights
    (adapters) has those in bf16 outright from here on.
    """

    def __init__(self, model: nn.Module, *, in_place: bool) -> None:
        self._decoder, self._head = decoder_and_head(model)
        self._patched: list[nn.Module] = []
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        self.rows = row_attention.is_suitable(self._decoder)
        """Whether batches are to be one line of rows with their boundaries (`packing.collate`'s `flat`)."""
        self._attention = row_attention.use(self._decoder) if self.rows else None
        self._round_frozen(model)
        for module in self._decoder.modules():
            if type(module) is nn.Linear and module.weight.requires_grad:
                copy = self._copy(module.weight)
                self._patch(module, functools.partial(_linear, module, copy, in_place))
            elif _is_rms_norm(module):
                self._patch(module, functools.partial(_rms_norm, module))
            elif _is_swiglu(module):
                self._patch(module, functools.partial(_swiglu, module))
            elif hasattr(module, "cast_input_dtype_enabled"):
                setattr(module, "cast_input_dtype_enabled", False)  # noqa: B010 - PEFT's, unknown to types
        head = self._head.linear.weight
        self.head_copy = self._copy(head) if head.requires_grad else head.detach()
        """The head in bf16, for the loss."""

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date with the weights."""
        for weight, copy in self._copies.items():
            copy.copy_(weight)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For a forward without packed rows, such as generation: the model's own attention. Products stay in bf16."""
        before = row_attention.use(self._decoder, self._attention) if self._attention is not None else None
        if before not in (None, row_attention.NAME):
            row_attention.use(self._decoder, before)  # an engine has put its own attention in
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                yield
        finally:
            if before is not None:
                row_attention.use(self._decoder, before)

    def remove(self) -> None:
        """Give the model its own layers back. Frozen weights stay in bf16."""
        for module in self._patched:
            module.__dict__.pop("forward", None)
        self._patched.clear()
        self._copies.clear()
        if self._attention is not None:
            row_attention.use(self._decoder, self._attention)

    def _copy(self, weight: torch.Tensor) -> torch.Tensor:
        if weight not in self._copies:
            self._copies[weight] = weight.detach().to(torch.bfloat16)
        return self._copies[weight]

    def _patch(self, module: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        module.forward = forward
        self._patched.append(module)

    def _round_frozen(self, model: nn.Module) -> None:
        embedding = self._decoder.get_input_embeddings()
        plain = embedding if type(embedding) is nn.Embedding and embedding.max_norm is None else None
        for module in model.modules():
            if type(module) is not nn.Linear or module.weight.requires_grad or not module.weight.is_floating_point():
                continue
            if plain is not None or module.weight is not embedding.weight:
                module.weight.data = module.weight.data.to(torch.bfloat16)
        if plain is not None and not plain.weight.requires_grad:
            plain.weight.data = plain.weight.data.to(torch.bfloat16)
            # The stream of hidden states that all layers add to is in fp32.
            self._patch(plain, lambda ids: F.embedding(ids, plain.weight).float())


def _linear(module: nn.Linear, copy: torch.Tensor, in_place: bool, hidden: torch.Tensor) -> torch.Tensor:
    return linear(hidden, module.weight, module.bias, copy, in_place=in_place)


def _rms_norm(module: RmsNorm, hidden: torch.Tensor) -> torch.Tensor:
    epsilon = _epsilon(module)
    assert epsilon is not None
    return rms_norm(hidden, module.weight, epsilon)


def _swiglu(module: SwiGlu, hidden: torch.Tensor) -> torch.Tensor:
    return module.down_proj(swiglu(module.gate_proj(hidden), module.up_proj(hidden)))


def _epsilon(module: nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@torch.no_grad()
def _is_rms_norm(module: nn.Module) -> TypeGuard[RmsNorm]:
    """Whether a module computes `weight * x / rms(x)`; others of that name multiply by 1 + weight, or not at all."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    names = {name for name, _ in module.named_parameters()}
    if "RMSNorm" not in type(module).__name__ or names != {"weight"} or not isinstance(epsilon, float):
        return False
    if weight is None or weight.dim() != 1:
        return False
    hidden = torch.linspace(-2, 3, 2 * len(weight)).sin().view(2, -1)
    try:
        own = module(hidden).float()
    except (TypeError, RuntimeError):
        return False
    return bool((own - rms_norm(hidden, weight, epsilon).float()).norm() <= TOLERANCE * own.norm())


@torch.no_grad()
def _is_swiglu(module: nn.Module) -> TypeGuard[SwiGlu]:
    """Whether a module computes `down(silu(gate(x)) * up(x))` and nothing else."""
    if {name for name, _ in module.named_children()} != SWIGLU:
        return False
    layer, points = cast("SwiGlu", module), torch.linspace(-6, 6, 25)
    if not torch.allclose(layer.act_fn(points), F.silu(points), atol=1e-5):
        return False
    hidden = torch.linspace(-2, 3, 2 * layer.gate_proj.in_features).sin().view(1, 2, -1)
    was_training = module.training
    module.eval()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            own, ours = module(hidden).float(), _swiglu(layer, hidden).float()
    except (TypeError, RuntimeError):
        return False
    finally:
        module.train(was_training)
    return bool((own - ours).norm() <= TOLERANCE * own.norm())
