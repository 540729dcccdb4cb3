"""The loss computed inside the student's own forward: packed batch -> sum of nats, without a `[B, W, V]` tensor of logits.

    install(student, load_objective("cross_entropy"))
    student(batch).total                # a LossBatch: the loss
    student(input_ids=ids).logits       # anything else: the student as it was; so `student.generate(ids)` works, too
    uninstall(student)

Shapes: B bins, W width, N loss positions, H hidden size, V vocabulary.

DDP, FSDP and accelerate's autocast hook `forward`; what runs outside of it sees sharded weights and unsynchronized
gradients. So `install` puts a forward in place that looks at its first argument. For a `LossBatch` it runs the decoder,
picks the loss positions and hands them to the objective together with the head; everything else goes to the student's own
forward.

Two other designs were compared with this one:
- A module around the student (`LossModule.student`) for DDP and FSDP to wrap. Under FSDP2 `module.student.generate` would
  miss the hooks of the root, which gathers the embeddings and the head. Every weight would get another name in checkpoints;
  saving, PEFT, quantization, gradient checkpointing and the split of layers would each have to unwrap it.
- An own loop on accelerate. It reads well, but it would have to write again what `transformers.Trainer` has: resuming with
  random states, all schedulers and optimizers by name, trackers, DeepSpeed, clipping under sharding; several hundred lines.
A forward that looks at its argument keeps all of that, and generation runs through the same hooks as training. The replay
after running out of memory (`trainer.py`) is the same in all three.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from distill_lab.errors import UserError
from distill_lab.train.gradients import look_up
from distill_lab.train.objectives import Head, LossBatch, LossOutput, Objective, Signal, refuse_unread

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference between two ways of computing the same thing."""
BEFORE = "_forward_before_loss"
"""The attribute of a model with a loss that holds the forward it was loaded with, such as that of accelerate's hooks."""


class SignalSource(Protocol):
    """What `install` needs of a teacher (`teachers.Teacher`)."""

    def signal(self, batch: LossBatch) -> Signal:
        """What the teacher says at the loss positions of `batch`."""
        ...


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The causal language model itself: `model`, or what LoRA adapters were put on."""
    causal = model if isinstance(model, PreTrainedModel) else getattr(model, "get_base_model")()  # noqa: B009 - PEFT's
    assert isinstance(causal, PreTrainedModel), f"{_name(model)} is not one of transformers' models"
    return causal


def decoder_and_head(model: nn.Module) -> tuple[PreTrainedModel, Head]:
    """The decoder stack and the output head of a causal language model, with or without LoRA adapters.

    Raises UserError if the head is not a plain linear layer.
    """
    causal = causal_model(model)
    linear = causal.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
        raise UserError(
            f"{_name(model)}: its output head is {type(linear).__name__}, not a linear layer; choose another student"
        )
    config = causal.config.get_text_config()
    # The names under which transformers' models configure what stands between the head and the logits.
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    decoder = causal.base_model
    assert isinstance(decoder, PreTrainedModel), f"{_name(model)} has no decoder"
    return decoder, Head(linear, scale, getattr(config, "final_logit_softcapping", None))


def embedding_weight(decoder: PreTrainedModel) -> torch.Tensor:
    """The weights of the input embeddings; token ids belong on their device."""
    weight = decoder.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight


def install(
    model: nn.Module,
    objective: Objective,
    *,
    teacher: SignalSource | None = None,
    head_copy: torch.Tensor | None = None,
    outside: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Make `model(batch)` return the objective's `LossOutput` for a `LossBatch`, until `uninstall`; all else is as before.

    teacher: its `signal` becomes the batch's targets, unless it has some. head_copy: `Head.copy`. outside: what every
    forward other than the loss runs in (`Bf16Passes.paused`). `model(batch, head_grad_scale=...)` sets `Head.grad_scale`. A
    batch with a field that nobody reads is refused with a TypeError.
    """
    _uninstall_loss(model)
    decoder, head = decoder_and_head(model)
    head = replace(head, copy=head_copy)
    own = model.forward

    def loss(batch: LossBatch, *, head_grad_scale: float | None = None) -> LossOutput:
        refuse_unread(batch)
        if teacher is not None and batch.targets is None:
            # Here, because this is where training, validation and what is computed again with less memory pass through.
            batch = replace(batch, targets=teacher.signal(batch))
        outputs = decoder(**batch.decoder_inputs(), use_cache=False)
        hidden_NH = outputs.last_hidden_state.flatten(0, 1).index_select(0, batch.loss_positions_N)
        return objective(hidden_NH, replace(head, grad_scale=head_grad_scale), batch)

    @functools.wraps(own)
    def forward(*inputs: Any, **settings: Any) -> Any:
        if inputs and isinstance(inputs[0], LossBatch):
            return loss(*inputs, **settings)
        with outside():
            return own(*inputs, **settings)

    _replace_forward(model, forward)
    causal = causal_model(model)
    if causal is not model and outside is not nullcontext:
        # PEFT generates with the model beneath the adapters.
        _replace_forward(causal, _within(outside, causal.forward))


def uninstall(model: nn.Module) -> None:
    """Give `model` its own forward back, and its embeddings theirs."""
    _uninstall_loss(model)
    decoder_and_head(model)[0].get_input_embeddings().__dict__.pop("forward", None)


def _replace_forward(module: nn.Module, forward: Callable[..., object]) -> None:
    setattr(module, BEFORE, module.__dict__.get("forward"))
    module.forward = forward


def _uninstall_loss(model: nn.Module) -> None:
    for module in (model, causal_model(model)):
        if BEFORE not in module.__dict__:
            continue
        module.__dict__.pop("forward", None)
        module.__dict__.pop("_original_forward", None)  # accelerate keeps ours, which holds the model
        before = module.__dict__.pop(BEFORE)
        if before is not None:
            module.forward = before


def _within(outside: Callable[[], AbstractContextManager[object]], own: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(own)
    def forward(*inputs: object, **settings: object) -> object:
        with outside():
            return own(*inputs, **settings)

    return forward


def add_embedding_gradients_in_place(model: nn.Module) -> None:
    """Let the input embeddings add their gradient to `.grad` row by row, until `uninstall`.

    torch makes a dense gradient of the embeddings' whole size for every micro-batch, at Qwen's vocabulary more than half a
    GB in fp32 that is all zeros but for a few hundred rows. For one process alone: DDP and FSDP wait for torch's. If the
    embeddings do more than to look up, nothing changes.
    """
    embedding = decoder_and_head(model)[0].get_input_embeddings()
    if type(embedding) is nn.Embedding and embedding.weight.requires_grad and embedding.max_norm is None:
        setattr(embedding, "forward", lambda ids: look_up(ids, embedding.weight, embedding.padding_idx))  # noqa: B010 - no method to types


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
    own = model(input_ids=input_ids, use_cache=False)
    hidden = decoder(input_ids=input_ids, use_cache=False)
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
    packed = decoder(input_ids=input_ids, position_ids=positions, use_cache=False)
    alone = decoder(input_ids=input_ids[:, 7:], use_cache=False)
    model.train(was_training)
    return not _differ(packed.last_hidden_state[:, 7:], alone.last_hidden_state)


def _some_tokens(head: Head, number: int) -> torch.Tensor:
    return torch.arange(1, number + 1, device=head.linear.weight.device)[None] * 97 % head.linear.out_features


def _differ(left: torch.Tensor, right: torch.Tensor) -> bool:
    tolerance = TOLERANCE[right.dtype if right.dtype in TOLERANCE else torch.float32]
    return bool((left.float() - right.float()).norm() > tolerance * right.float().norm())


def _name(model: nn.Module) -> str:
    return type(model).__name__
