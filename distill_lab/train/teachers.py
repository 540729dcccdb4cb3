"""A teacher beside the student: the packed batch that the student reads -> what the teacher says at its loss positions.

    teacher = live_teacher(ModelConfig(model="Qwen/Qwen2.5-7B-Instruct"), student_tokenizer, student_rows, rows)
    teacher.signal(batch).at(slice(0, 220))         # fp32 logits [220, V]

Shapes: B bins, W width, N loss positions, C positions of a chunk, T the teacher's hidden size, V ids that both models have.

The teacher is frozen and reads exactly the student's batch, so rows are kept apart by the same positions. Its hidden states
are picked at the loss positions and projected chunk by chunk, when the objective walks the student's chunks: its logits
never exist for a whole batch either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lab import activity
from distill_lab.chat import inspect_template
from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.models.loading import load_model
from distill_lab.models.names import api_engine
from distill_lab.models.token_bytes import refuse_other_ids, token_bytes
from distill_lab.train import row_attention
from distill_lab.train.loss_module import TOLERANCE, check_head, decoder_and_head, rows_stay_apart
from distill_lab.train.objectives import Head, LossBatch, Signal, signals_of
from distill_lab.train.objectives._chunked_head import as_the_model_has_them
from distill_lab.train.packing import Row


class Teacher(Protocol):
    """Something that knows a teacher's distributions."""

    def signal(self, batch: LossBatch) -> Signal:
        """What the teacher says at the loss positions of `batch`, on the batch's device."""
        ...

    def prepare(self, *, flat: bool) -> None:
        """Called once before training. flat: as in `packing.collate`, for all batches to come."""

    def rows_stay_apart(self) -> bool:
        """Whether rows may share a bin (`loss_module.rows_stay_apart`)."""
        ...


@runtime_checkable
class ReadingTeacher(Protocol):
    """A teacher that reads the rows of a round before they are in batches."""

    def read(self, rows: Sequence[tuple[Row, Row]], name: str) -> None:
        """The rows that batches will have from now on: as the student reads each, and as the teacher does. name: of the
        round."""


@dataclass
class HeadSignal:
    """The teacher's logits, made of its hidden states chunk by chunk."""

    hidden_NT: torch.Tensor
    head: Head
    num_ids: int
    device: torch.device
    """The student's, where the objective computes."""
    _buffer_CV: torch.Tensor | None = None

    @torch.no_grad()
    def at(self, part: slice) -> torch.Tensor:
        """Logits of the first `num_ids` ids at these positions, fp32, [C, V]; the next call overwrites them."""
        weight_VT, bias = self.head.linear.weight[: self.num_ids], self.head.linear.bias
        hidden_CT = self.hidden_NT[part].to(weight_VT.device, weight_VT.dtype)
        buffer_CV = self._buffer_CV
        if buffer_CV is None or len(buffer_CV) < len(hidden_CT):
            buffer_CV = self._buffer_CV = torch.empty(
                (len(hidden_CT), self.num_ids), dtype=weight_VT.dtype, device=weight_VT.device
            )
        with torch.autocast(weight_VT.device.type, enabled=False):
            logits_CV = torch.mm(hidden_CT, weight_VT.T, out=buffer_CV[: len(hidden_CT)]).to(self.device).float()
            logits_CV, _ = as_the_model_has_them(
                logits_CV,
                bias if bias is None else bias[: self.num_ids].to(self.device),
                scale=self.head.scale,
                softcap=self.head.softcap,
            )
        return logits_CV


class LiveTeacher:
    """A teacher in memory, frozen, in its own dtype and quantization."""

    def __init__(self, model: PreTrainedModel, num_ids: int) -> None:
        """model: a causal language model as `load_model` loads it. num_ids: V, at most its head's rows."""
        check_head(model)
        self.model = model.eval()
        self.decoder, self.head = decoder_and_head(model)
        self.num_ids = num_ids
        self._row_by_row = False
        """Whether rows that are in one line have to be computed one at a time."""

    def prepare(self, *, flat: bool) -> None:
        """For batches of one line: attention row by row if the teacher's architecture can, else with a mask if that keeps
        rows apart, else a pass for each row."""
        if not flat:
            return
        if row_attention.is_suitable(self.decoder, tolerance=TOLERANCE[self._dtype()]):
            row_attention.use(self.decoder)
        else:
            self._row_by_row = not self.rows_stay_apart()

    def rows_stay_apart(self) -> bool:
        """Tried on the model itself."""
        return rows_stay_apart(self.model)

    @torch.no_grad()
    def signal(self, batch: LossBatch) -> HeadSignal:
        """One pass of the teacher over the batch; its activations are gone when this returns."""
        hidden_NT = self.hidden(batch)
        return HeadSignal(hidden_NT, self.head, self.num_ids, batch.labels_N.device)

    @torch.no_grad()
    def hidden(self, batch: LossBatch) -> torch.Tensor:
        """The last hidden states at the loss positions, [N, T]."""
        inputs = [batch.decoder_inputs()]
        if self._row_by_row:
            assert batch.cu_seqlens_R1 is not None
            lengths = batch.cu_seqlens_R1.diff().tolist()
            inputs = [{"input_ids": row_1L} for row_1L in batch.input_ids_BW.split(lengths, 1)]
        with torch.autocast(batch.labels_N.device.type, enabled=False):
            states = [self.decoder(**each, use_cache=False).last_hidden_state for each in inputs]
        hidden_BWT = torch.cat(states, 1)
        return hidden_BWT.flatten(0, 1).index_select(0, batch.loss_positions_N.to(hidden_BWT.device))

    def _dtype(self) -> torch.dtype:
        return self.head.linear.weight.dtype


def live_teacher(
    config: ModelConfig, student: PreTrainedTokenizerBase, student_rows: int, rows: Sequence[Row], *, student_name: str
) -> LiveTeacher:
    """Load the teacher and check that it can teach this student on these rows.

    student_rows: of the student's head. Raises UserError if the two have different tokenizers, or if a row has a token that
    the teacher does not have.
    """
    with activity.doing(f"loading the teacher {config.model}"):
        model, tokenizer = load_model(config)
    _, head = decoder_and_head(model)
    num_ids = min(student_rows, head.linear.out_features)
    names = token_bytes(tokenizer)
    refuse_other_ids(names, token_bytes(student), num_ids=num_ids, names=(config.model, student_name))
    refuse_foreign_tokens(names, rows, num_ids=num_ids, student=student, teacher=config.model)
    return LiveTeacher(model, num_ids)


def refuse_foreign_tokens(
    names: Mapping[int, bytes], rows: Sequence[Row], *, num_ids: int, student: PreTrainedTokenizerBase, teacher: str
) -> None:
    """Raise UserError if a row has a token that the teacher's tokenizer does not name: the teacher has never seen it."""
    known = known_ids(names, num_ids=num_ids, size=len(student) + 1)
    strange: dict[int, int] = {}
    for row in rows:
        ids = np.append(row.input_ids, row.target[-1:])
        for id in np.unique(ids[~known[np.minimum(ids, len(known) - 1)]]).tolist():
            strange[id] = strange.get(id, 0) + 1
    if strange:
        id, number = max(strange.items(), key=lambda item: item[1])
        raise UserError(
            f"{number:,} of {len(rows):,} training rows have the student's token {student.decode([id])!r} (id {id}), which "
            f"the teacher {teacher} does not have; its probabilities after it mean nothing. Leave such tokens out of the "
            "rows and of the chat template (thinking off), or choose another teacher"
        )


def known_ids(names: Mapping[int, bytes], *, num_ids: int, size: int = 0) -> np.ndarray:
    """bool, by id, of at least `size` ids: whether it is below `num_ids` and the teacher has a token for it.

    names: the teacher's `token_bytes`.
    """
    known = np.zeros(max(max(names, default=0) + 1, size, num_ids), dtype=bool)
    known[list(names)] = True
    known[num_ids:] = False
    return known


def reads_other_tokens(objective: str) -> bool:
    """Whether the teacher of this objective reads the text in its own tokens. Raises UserError for an unknown name."""
    return "chunks" in signals_of(objective)


def check_teacher(objective: str, teacher: ModelConfig, student: ModelConfig, *, on_policy: bool = False) -> None:
    """Raise UserError unless teacher and objective fit each other and the student. Loads tokenizers only.

    on_policy: whether the student writes the texts.
    """
    if not signals_of(objective):
        if teacher.model:
            raise UserError(
                f"the objective {objective} reads no teacher, but train.teacher is {teacher.model}; choose one that "
                "does (--train.objective forward_kl), or leave the teacher out"
            )
        return
    if not teacher.model:
        raise UserError(
            f"the objective {objective} compares the student with a teacher; give --train.teacher.model, or use "
            "`distill logits`"
        )
    sampled, on_server = signals_of(objective) == ("scored",), bool(api_engine(teacher.model))
    if sampled and not on_policy:
        raise UserError(
            f"the objective {objective} is right only for texts that the student has just sampled; use `distill on-policy`, "
            "or --train.objective forward_kl with a teacher that is loaded here"
        )
    if sampled and on_server:
        return  # the server is asked before the first round
    if sampled:
        raise UserError(
            f"the objective {objective} is for a teacher on a server; {teacher.model} is loaded here, where reverse_kl is "
            "exact"
        )
    if on_server and on_policy:
        raise UserError(
            f"{teacher.model}: a server names the most likely ids of each token, not its whole distribution; on-policy use "
            "--objective sampled_reverse_kl, the only one that has no bias then"
        )
    if on_server:
        raise UserError(
            f"{teacher.model}: a server gives tokens, not distributions, and the objective {objective} needs the teacher's "
            "probabilities; give a model that can be loaded here, or --train.objective cross_entropy on its answers"
        )
    from distill_lab.models.loading import load_tokenizer

    if reads_other_tokens(objective):
        for model in (teacher, student):
            inspect_template(load_tokenizer(model))
        return
    maps = [token_bytes(load_tokenizer(model)) for model in (teacher, student)]
    refuse_other_ids(maps[0], maps[1], num_ids=1 << 31, names=(teacher.model, student.model))
