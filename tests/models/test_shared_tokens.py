"""Tokens that two tokenizers have in common: which ids are paired, and which are not though they look alike."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from distill_lab.config import ModelConfig
from distill_lab.models.loading import load_tokenizer
from distill_lab.models.shared_tokens import shared_tokens
from distill_lab.models.token_bytes import same_ids, token_bytes
from tests.other_tokenizer import other_tokenizer


@pytest.fixture(scope="module")
def other() -> PreTrainedTokenizerBase:
    return other_tokenizer()


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelConfig(model="tiny:student"))


def id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def test_pairs_are_the_same_bytes_and_each_id_is_in_one_pair(
    tiny: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> None:
    found = shared_tokens(tiny, other)
    ours, theirs = token_bytes(tiny), token_bytes(other)
    assert len(found) > 80
    assert len(set(found.teacher_S.tolist())) == len(set(found.student_S.tolist())) == len(found)
    assert (np.diff(found.student_S) > 0).all()
    for left, right in zip(found.student_S.tolist(), found.teacher_S.tolist(), strict=True):
        assert ours[left] == theirs[right]
        assert found.teacher_of_V[left] == right
    assert (found.teacher_of_V >= 0).sum() == len(found)
    # A letter that the other vocabulary has twice, as a piece and as a byte, is paired with the piece it is written with.
    [written] = other.encode("e", add_special_tokens=False)
    [own] = tiny.encode("e", add_special_tokens=False)
    assert found.teacher_of_V[own] == written
    assert other.convert_ids_to_tokens(written) == "e"
    assert sum(name == b"e" for name in theirs.values()) == 2
    # A byte that it has no piece for is paired with the byte.
    missing = next(byte for byte in range(32) if sum(name == bytes([byte]) for name in theirs.values()) == 1)
    [own] = [id for id, name in ours.items() if name == bytes([missing])]
    assert other.convert_ids_to_tokens(int(found.teacher_of_V[own])) == f"<0x{missing:02X}>"


def test_end_tokens_are_a_pair_and_control_tokens_are_no_text(
    tiny: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> None:
    ends = id_of(tiny, "<|im_end|>"), id_of(other, "<end_of_turn>")
    found = shared_tokens(tiny, other, ends=ends)
    assert found.teacher_of_V[ends[0]] == ends[1]
    assert found.teacher_of_V[id_of(tiny, "<|endoftext|>")] == -1
    itself = shared_tokens(tiny, tiny, ends=(ends[0], ends[0]))
    assert len(itself) == len(tiny)
    assert (itself.student_S == itself.teacher_S).all()
    # Another meaning of the same name: what ends a turn here is something else there.
    begin = id_of(tiny, "<|im_start|>")
    moved = shared_tokens(tiny, tiny, ends=(ends[0], begin))
    assert moved.teacher_of_V[[ends[0], begin]].tolist() == [begin, -1]


def test_runs_of_spaces_are_what_the_decoder_makes_of_them(other: PreTrainedTokenizerBase) -> None:
    names = token_bytes(other)
    double = other.convert_tokens_to_ids("\u2581\u2581")
    assert double in other.added_tokens_decoder
    assert names[double] == b"  "
    text = "The  colour is Größe 今"
    assert b"".join(names[id] for id in other.encode(text, add_special_tokens=False)) == text.encode()


def test_the_same_ids_are_found(tiny: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    names = token_bytes(tiny)
    assert same_ids(names, names)
    assert same_ids(names, {id: name for id, name in names.items() if id % 2})
    assert same_ids(names | {9999: b"more"}, names)
    assert not same_ids(names, token_bytes(other))
    assert not same_ids(names | {5: b"\xff\xff"}, names)
    assert not same_ids(names, {})
