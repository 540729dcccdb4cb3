"""The loss computed inside the model's own forward: packed batch -> sum of nats, without a `[B, W, V]` tensor of logits.

Shapes: B bins, W width, N trained positions, H hidden, V vocabulary.

DDP, FSDP and accelerate's autocast hook `forward`; what runs outside it sees sharded weights and unsynchronised
gradients. So `install` puts a forward in place that runs the decoder, picks the trained positions and hands them to the
objective together with the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from distill_lab.errors import UserError
from distill_lab.train.objectives import cross_entropy
from distill_lab.train.objectives.cross_entropy import gradient_of

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference between two ways of computing the same thing."""


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    copy: torch.Tensor | None = None
    """The weights in the type that products are computed in, where the trainer keeps them (`bf16_passes`)."""


Objective = Callable[[torch.Tensor, Head, dict[str, Any]], torch.Tensor]
"""`objective(hidden_NH, head, batch) -> sum of nats` over the N trained positions; `batch` is what `collate` made, and
`loss_scale`: None, or what the trainer will multiply the sum by, for objectives that add to `head.linear.weight.grad`
themselves (see `cross_entropy.loss`)."""


def cross_entropy_objective(hidden_NH: torch.Tensor, head: Head, batch: dict[str, Any]) -> torch.Tensor:
    """Cross-entropy with the next token, `batch["labels_N"]`."""
    return cross_entropy.loss(
        hidden_NH,
        head.linear.weight,
        batch["labels_N"],
        bias=head.linear.bias,
        softcap=head.softcap,
        scale=head.scale,
        head_grad_scale=batch.get("loss_scale"),
        head_copy_VH=head.copy,
    )


def decoder_and_head(model: nn.Module) -> tuple[PreTrainedModel, Head]:
    """The decoder stack and the output head of a causal language model, with or without LoRA adapters.

    Raises UserError where the head is not a plain linear layer.
    """
    causal: Any = model if isinstance(model, PreTrainedModel) else getattr(model, "get_base_model")()  # noqa: B009 - PEFT's
    linear = causal.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
        raise UserError(
            f"{_name(model)}: its output head is {type(linear).__name__}, not a linear layer; choose another student"
        )
    config = causal.config.get_text_config()
    # The names under which transformers' models configure what stands between the head and the logits.
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return causal.base_model, Head(linear, scale, getattr(config, "final_logit_softcapping", None))


def install(
    model: nn.Module, objective: Objective = cross_entropy_objective, *, head_copy: torch.Tensor | None = None
) -> None:
    """Make `model(**batch)` return the objective's sum over the batch, until `uninstall`. head_copy: `Head.copy`."""
    decoder, head = decoder_and_head(model)
    head = replace(head, copy=head_copy)

    def forward(
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        trained_N: torch.Tensor,
        labels_N: torch.Tensor,
        loss_scale: float | None = None,
        **attention: Any,
    ) -> torch.Tensor:
        outputs = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention)
        hidden_NH = outputs.last_hidden_state.flatten(0, 1).index_select(0, trained_N)
        return objective(hidden_NH, head, {"trained_N": trained_N, "labels_N": labels_N, "loss_scale": loss_scale})

    model.forward = forward


def uninstall(model: nn.Module) -> None:
    """Give `model` its own forward back."""
    for module in (model, decoder_and_head(model)[0].get_input_embeddings()):
        module.__dict__.pop("forward", None)


def add_embedding_gradients_in_place(model: nn.Module) -> None:
    """Let the input embeddings add their gradient to `.grad` row by row, until `uninstall`.

    torch makes a dense gradient of the embeddings' whole size for every micro-batch, at Qwen's vocabulary more than half a
    GB in fp32 that is all zeros but for a few hundred rows. For one process alone: DDP and FSDP wait for torch's. Where the
    embeddings do more than to look up, nothing changes.
    """
    embedding: Any = decoder_and_head(model)[0].get_input_embeddings()
    if type(embedding) is nn.Embedding and embedding.weight.requires_grad and embedding.max_norm is None:
        setattr(embedding, "forward", lambda ids: _Lookup.apply(embedding.weight, ids, embedding.padding_idx))  # noqa: B010 - no method to types


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VH: torch.Tensor, ids: torch.Tensor, padding: int | None) -> torch.Tensor:
        ctx.weight_VH, ctx.padding = weight_VH, padding
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight_VH)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[None, None, None]:
        ids_T, grad_TH = ctx.saved_tensors[0].flatten(), grads[0].flatten(0, -2)
        if ctx.padding is not None:
            kept_T = ids_T != ctx.padding
            ids_T, grad_TH = ids_T[kept_T], grad_TH[kept_T]
        gradient_of(ctx.weight_VH).index_add_(0, ids_T, grad_TH)
        return None, None, None


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the decoder, in place: one compilation serves all of them, and batches of any shape."""
    decoder, _ = decoder_and_head(model)
    kinds = set(decoder._no_split_modules or ())
    for layer in decoder.modules():
        if type(layer).__name__ in kinds:
            layer.compile(dynamic=True)


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Raise UserError unless decoder, head, scale and softcap reproduce the model's own logits."""
    decoder, head = decoder_and_head(model)
    input_ids = _some_tokens(head, 8)
    was_training = model.training
    model.eval()
    own: Any = model(input_ids=input_ids, use_cache=False)
    hidden: Any = decoder(input_ids=input_ids, use_cache=False)
    model.train(was_training)
    logits = F.linear(hidden.last_hidden_state, head.linear.weight, head.linear.bias) * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    if _differ(logits, own.logits):
        raise UserError(
            f"{_name(model)}: its logits are not those of its head on its hidden states; choose another student"
        )


@torch.no_grad()
def rows_stay_apart(model: nn.Module) -> bool:
    """Whether a row's hidden states are the same with another row before it in its bin. Tried, not looked up."""
    decoder, head = decoder_and_head(model)
    input_ids = _some_tokens(head, 12)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None].to(input_ids.device)
    was_training = model.training
    model.eval()
    packed: Any = decoder(input_ids=input_ids, position_ids=positions, use_cache=False)
    alone: Any = decoder(input_ids=input_ids[:, 7:], use_cache=False)
    model.train(was_training)
    return not _differ(packed.last_hidden_state[:, 7:], alone.last_hidden_state)


def _some_tokens(head: Head, number: int) -> torch.Tensor:
    return torch.arange(1, number + 1, device=head.linear.weight.device)[None] * 97 % head.linear.out_features


def _differ(left: torch.Tensor, right: torch.Tensor) -> bool:
    tolerance = TOLERANCE[right.dtype if right.dtype in TOLERANCE else torch.float32]
    return bool((left.float() - right.float()).norm() > tolerance * right.float().norm())


def _name(model: nn.Module) -> str:
    return type(model).__name__
