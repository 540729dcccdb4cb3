"""What collation, the decoder, a teacher, an objective and the trainer hand to each other.

Shapes: B bins, W width of a bin in tokens, R rows, N loss positions (the student learns the token after each of them),
C loss positions of one chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    copy: torch.Tensor | None = None
    """The weights in the type that products are computed in, if the trainer keeps them (`bf16_passes`)."""
    grad_scale: float | None = None
    """The factor by which the trainer will multiply the loss, if the head's gradient may be added to `linear.weight.grad`
    during the forward pass (`_chunked_head.head_loss`)."""


class Signal(Protocol):
    """What a teacher says about the loss positions of a batch."""

    @property
    def num_ids(self) -> int | None:
        """V if student and teacher share the ids below V only: the student's head is then used up to there. None: all."""
        ...

    def at(self, part: slice) -> SignalPart:
        """The teacher's part for the loss positions `part`, in a form that the objective reads. `part` may be empty."""
        ...


@runtime_checkable
class GroupedSignal(Signal, Protocol):
    """A signal of which some positions belong together."""

    def parts(self, most: int) -> Sequence[slice]:
        """All loss positions in their order, in at least one slice of at most `most` positions (or of one group that is
        longer), none of which divides a group. `at` takes these slices alone."""
        ...


@dataclass(frozen=True)
class TopK:
    """The teacher's K most likely ids at each of C positions, and what is left for all others."""

    ids_CK: torch.Tensor
    """int64, distinct at each position."""
    log_p_CB: torch.Tensor
    """fp32, [C, K + 1]: log-probabilities of the ids, then of all others together."""
    known_C: torch.Tensor | None = None
    """bool: False where the teacher says nothing, and the divergence is 0; None: it says something everywhere."""

    def at(self, part: slice) -> TopK:
        """Those of some positions."""
        known_C = self.known_C
        return TopK(self.ids_CK[part], self.log_p_CB[part], known_C if known_C is None else known_C[part])


@dataclass(frozen=True)
class SeveralTopK:
    """What several teachers say of the same positions; their divergences are added."""

    teachers: tuple[TopK, ...]

    def at(self, part: slice) -> SeveralTopK:
        """What they say of some positions."""
        return SeveralTopK(tuple(each.at(part) for each in self.teachers))


@dataclass(frozen=True)
class Scored:
    """What a server says of C positions of a text."""

    log_p_C: torch.Tensor
    """fp32, log-probabilities of the next tokens."""
    top: TopK


@dataclass(frozen=True)
class Draws:
    """What was drawn from the teacher's distributions at C positions; M distinct ids, position by position."""

    positions_M: torch.Tensor
    """int64, in [0, C)."""
    ids_M: torch.Tensor
    """int64, distinct at each position."""
    weights_M: torch.Tensor
    """fp32, shares of the draws; they sum to `total_C`."""
    total_C: torch.Tensor
    """fp32, 1; 0 if no draw at this position is an id that the student has."""
    entropy_C: torch.Tensor
    """fp32, the teacher's entropy in nats, a mean over each row: only sums over whole rows are exact."""
    is_partial: bool
    """Whether `total_C` has zeros."""


@dataclass(frozen=True)
class Chunks:
    """What a teacher with another tokenizer says of the text at C positions, in K chunks that are whole tokens of both.

    D teacher tokens, W ids of the teacher, S ids of either side that stand for the same bytes.
    """

    logits_DW: torch.Tensor
    """fp32, the teacher's before each of its tokens; may be overwritten."""
    labels_D: torch.Tensor
    """int64, the teacher's tokens."""
    chunk_D: torch.Tensor
    """int64, in [0, K), not descending: the chunk of each."""
    chunk_C: torch.Tensor
    """int64, the chunk of each of the student's tokens, not descending, or -1: not compared."""
    same_K: torch.Tensor
    """bool; whether the chunk is one token, the same, for both."""
    shared: torch.Tensor
    """int64, [2, S]: ids of the student, and the teacher's for the same bytes."""


SignalPart = torch.Tensor | TopK | SeveralTopK | Scored | Draws | Chunks
"""What a teacher says about C loss positions. A tensor: its logits [C, V] in fp32, which may be overwritten."""


@dataclass(frozen=True)
class LossBatch:
    """The packed rows of one micro-batch. Each field names its one reader; `READERS` refuses a field that has none.

    Loss positions follow the order of the bins and, inside a bin, of the rows, so whatever is stored per row concatenates
    to N.
    """

    input_ids_BW: torch.Tensor
    """int64. Reader: the decoder (the student's, or a teacher's)."""
    position_ids_BW: torch.Tensor
    """int64, from 0 in each row. Reader: the decoder."""
    cu_seqlens_R1: torch.Tensor | None
    """int32, [R + 1]: where each row begins in a batch that is one line, and where the last one ends. None: the positions
    alone separate the rows. Reader: the decoder's attention."""
    max_seqlen: int | None
    """Tokens of the longest row, with `cu_seqlens_R1`. Reader: the decoder's attention."""
    loss_positions_N: torch.Tensor
    """int64 indices into B * W. Reader: the loss module, which picks these hidden states."""
    labels_N: torch.Tensor
    """int64, the next tokens. Reader: the objective."""
    row_ids_R: tuple[bytes, ...]
    """The digest of each row (`packing.Row.id`) in the order of the loss positions. Reader: the teacher or its cache."""
    targets: Signal | None = None
    """What the teacher says; None without a teacher. Reader: the objective."""

    def to(self, device: torch.device | str) -> LossBatch:
        """The batch with its tensors on `device`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def decoder_inputs(self) -> dict[str, torch.Tensor | int | None]:
        """The keyword arguments of a transformers decoder, which calls the row boundaries by FlashAttention's names."""
        inputs: dict[str, torch.Tensor | int | None] = {
            "input_ids": self.input_ids_BW,
            "position_ids": self.position_ids_BW,
        }
        if self.cu_seqlens_R1 is not None:
            inputs |= {"cu_seq_lens_q": self.cu_seqlens_R1, "cu_seq_lens_k": self.cu_seqlens_R1}
            inputs |= {"max_length_q": self.max_seqlen, "max_length_k": self.max_seqlen}
        return inputs


READERS = {
    "input_ids_BW": "decoder",
    "position_ids_BW": "decoder",
    "cu_seqlens_R1": "decoder",
    "max_seqlen": "decoder",
    "loss_positions_N": "loss module",
    "labels_N": "objective",
    "row_ids_R": "teacher",
    "targets": "objective",
}
"""Who reads each field of a `LossBatch`."""


def refuse_unread(batch: LossBatch) -> None:
    """Raise TypeError, naming the fields, if `batch` has fields without a reader."""
    if unread := [each.name for each in fields(batch) if each.name not in READERS]:
        raise TypeError(
            f"nobody reads {', '.join(unread)} of {type(batch).__name__}; give each field a reader in READERS"
        )


class LossOutput(NamedTuple):
    """What an objective makes of a micro-batch. A tuple, because DDP, FSDP and autocast look into tuples."""

    total: torch.Tensor
    """The loss as a *sum* over the loss positions in nats, a scalar in fp32; only the trainer divides."""
    metrics: dict[str, torch.Tensor]
    """Further sums over the loss positions, scalars without a gradient, for the log."""


Objective = Callable[[torch.Tensor, Head, LossBatch], LossOutput]
"""`objective(hidden_NH, head, batch)`: hidden states at the loss positions -> the loss. Made by `load_objective`."""


@dataclass(frozen=True)
class ChunkTargets:
    """What the logits of one chunk are compared with."""

    labels_C: torch.Tensor
    """int64, the next tokens."""
    signal: SignalPart | None = None
    """The teacher's part for these positions (`Signal.at`); None without a teacher."""


class ChunkLoss(NamedTuple):
    """What an objective makes of one chunk."""

    total: torch.Tensor
    """Sum over C in nats, a scalar in fp32."""
    grad_CV: torch.Tensor
    """fp32, the gradient of `total` for the logits; may lie in their memory."""
    metrics: Mapping[str, torch.Tensor] = {}
    """Further sums over C, scalars."""


ChunkFunction = Callable[[torch.Tensor, ChunkTargets], ChunkLoss]
"""`chunk_loss(logits_CV, targets)`: an objective, for one chunk. The logits are fp32 and may be overwritten."""
