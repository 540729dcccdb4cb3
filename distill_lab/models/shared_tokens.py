"""Which tokens of two different tokenizers are the same text: two tokenizers -> pairs of ids.

    shared = shared_tokens(student_tokenizer, teacher_tokenizer)
    shared.teacher_of[student_id]                 the teacher's id of the same bytes, or -1

Qwen's and GPT-NeoX's vocabularies have 40,827 strings in common, a quarter of Qwen's and most of GPT-NeoX's. Between them
the probabilities of two models can be compared as they are.

Shapes: S pairs, V ids of the student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from distill_lab.models.token_bytes import is_byte_piece, token_bytes


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that two tokenizers have in common."""

    student_S: np.ndarray
    """int64, ids of the student, ascending."""
    teacher_S: np.ndarray
    """int64, the teacher's ids of the same bytes; each occurs once."""
    teacher_of_V: np.ndarray
    """int64, by the student's ids: the teacher's id of the same bytes, or -1."""

    def __len__(self) -> int:
        return len(self.student_S)


def shared_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, ends: tuple[int, int] | None = None
) -> SharedTokens:
    """The pairs of ids that stand for the same bytes.

    A control token is paired with a control token of the same spelling only: the text `<|im_end|>` does not end a turn.
    ends: the ids that end a turn in each one's chat template, which are a pair whatever they are called.
    """
    names = [_unique(tokenizer) for tokenizer in (student, teacher)]
    pairs = {names[0][key]: names[1][key] for key in names[0].keys() & names[1].keys()}
    if ends is not None:
        pairs = {left: right for left, right in pairs.items() if left != ends[0] and right != ends[1]}
        pairs[ends[0]] = ends[1]
    ordered = sorted(pairs.items())
    student_S, teacher_S = np.asarray(ordered, dtype=np.int64).reshape(-1, 2).T
    teacher_of_V = np.full(1 + max(max(student.get_vocab().values()), len(student)), -1, dtype=np.int64)
    teacher_of_V[student_S] = teacher_S
    return SharedTokens(student_S, teacher_S, teacher_of_V)


def _unique(tokenizer: PreTrainedTokenizerBase) -> Mapping[tuple[bool, bytes], int]:
    """(whether it is a control token, bytes) -> the id that the tokenizer uses for them.

    If several ids stand for the same bytes, a piece of text goes before a single byte, which is used only if there is no
    piece, and then the lowest id.
    """
    names = token_bytes(tokenizer)
    control = {id for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    spelled = {id: token for token, id in tokenizer.get_vocab().items()}
    order = sorted(names, key=lambda id: (is_byte_piece(spelled.get(id, "")), id), reverse=True)
    return {(id in control, names[id]): id for id in order}
