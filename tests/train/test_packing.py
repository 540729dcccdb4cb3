"""Packing: every row once, bins never overfull, and packed rows give exactly the loss and gradients of single rows."""

from __future__ import annotations

import hashlib
import random
from dataclasses import FrozenInstanceError
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from distill_lab.chat import Encoded
from distill_lab.errors import UserError
from distill_lab.train import loss_module
from distill_lab.train.packing import Row, choose_width, collate, epoch_batches, pack, split_batch
from tests.helpers import CROSS_ENTROPY

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build(kind: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    if kind == "qwen2":
        model: Any = Qwen2ForCausalLM(Qwen2Config(**SIZES, **settings))
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, **settings))
    elif kind == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, **settings))
    elif kind == "granite":
        model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0, **settings))
    elif kind == "cohere":
        model = CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, **settings))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=256))
    # Random weights this large make every hidden state depend visibly on all it attends to.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(5)
    return model


def rows(number: int = 9, longest: int = 30) -> tuple[list[Encoded], list[Row]]:
    rng = random.Random(3)
    encoded = []
    for _ in range(number):
        length = rng.randint(4, longest)
        trained = [position > length // 3 for position in range(length)]
        encoded.append(Encoded([rng.randrange(3, 101) for _ in range(length)], trained))
    return encoded, [Row.from_encoded(each) for each in encoded]


def loss_of_single_rows(model: Any, encoded: list[Encoded]) -> torch.Tensor:
    """Plain transformers: one row at a time, its own loss over its own labels."""
    total = torch.zeros(())
    for each in encoded:
        labels = torch.tensor(
            [token if flag else -100 for token, flag in zip(each.input_ids, each.loss_mask, strict=True)]
        )
        loss = model(input_ids=torch.tensor([each.input_ids]), labels=labels[None]).loss
        total = total + loss * sum(each.loss_mask)
    return total


def test_pack_holds_every_row_once_and_never_overfills() -> None:
    rng = random.Random(0)
    for trial in range(50):
        width = rng.randint(10, 200)
        lengths = [rng.randint(1, width) for _ in range(rng.randint(1, 300))]
        bins = pack(lengths, width)
        assert sorted(index for bin_ in bins for index in bin_) == list(range(len(lengths))), trial
        assert all(sum(lengths[index] for index in bin_) <= width for bin_ in bins)
        # A bin is opened only for what fits nowhere else, so no two of them could be one.
        fills = sorted(sum(lengths[index] for index in bin_) for bin_ in bins)
        assert len(fills) == 1 or fills[0] + fills[1] > width


def test_pack_by_hand() -> None:
    # 7 opens, 6 opens, 5 opens; 4 goes to the bin with 4 left, 3 to the one with 3 left, 2 to the one with 5 left.
    assert pack([2, 3, 4, 5, 6, 7], 10) == [[5, 1], [4, 2], [3, 0]]
    assert pack([5, 5, 5], 10) == [[0, 1], [2]]


def test_packed_rows_waste_little() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(30, 80) for _ in range(2000)]
    width = choose_width(lengths, 8192)
    assert sum(lengths) > 0.97 * len(pack(lengths, width)) * width
    assert 80 <= width <= 240


def test_the_cheapest_width_by_hand() -> None:
    # Bins * width * (1,024 + width): 6 * 100 * 1,124 = 674,400; 4 * 125 * 1,149 = 574,500; one of 400 * 1,424 = 569,600.
    lengths = [100, 60, 60, 60, 60, 60]
    assert choose_width(lengths, 400) == 400
    assert choose_width(lengths, 399) == 125
    # No bin is narrower than the longest row, however small the batch.
    assert choose_width(lengths, 10) == 100


def test_epochs_hold_every_row_once_and_differ() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(5, 60) for _ in range(200)]
    for pack_rows in (True, False):
        width = 64 if pack_rows else 60
        orders = []
        for epoch in (0, 1, 0):
            batches = epoch_batches(
                lengths, tokens_per_batch=256, width=width, seed=1, epoch=epoch, pack_rows=pack_rows
            )
            assert sorted(i for batch in batches for bin_ in batch for i in bin_) == list(range(200))
            assert max(len(batch) for batch in batches) == 4 == 256 // width
            assert pack_rows or all(len(bin_) == 1 for batch in batches for bin_ in batch)
            orders.append(batches)
        assert orders[0] == orders[2] != orders[1]
        settings = {"tokens_per_batch": 256, "width": width, "pack_rows": pack_rows}
        assert epoch_batches(lengths, seed=1, round_number=1, **settings) != orders[0]
        assert epoch_batches(lengths, seed=2, **settings) != orders[0]
        if pack_rows:
            assert epoch_batches(lengths, tokens_per_batch=256, width=width, seed=1) == orders[0]
    narrow = epoch_batches(lengths, tokens_per_batch=10, width=64, seed=1)
    assert {len(batch) for batch in narrow} == {1}


def test_rows_that_cannot_be_packed_share_a_batch_with_rows_of_similar_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(5, 60) for _ in range(200)]
    batches = epoch_batches(lengths, tokens_per_batch=256, width=60, seed=1, pack_rows=False)
    spans = [[lengths[index] for (index,) in batch] for batch in batches]
    in_order = sorted(spans, key=lambda span: (min(span), max(span)))
    assert all(max(one) <= min(other) for one, other in pairwise(in_order))
    assert spans != in_order


def test_split_batch_by_hand() -> None:
    batch = [["a", "b"], ["c"], ["d"]]
    assert split_batch(batch, 1) == [batch]
    assert split_batch(batch, 2) == [[["a", "b"]], [["c"], ["d"]]]
    assert split_batch(batch, 3) == [[["a", "b"]], [["c"]], [["d"]]]
    assert split_batch(batch, 4) == split_batch(batch, 9) == [[["a"]], [["b"]], [["c"]], [["d"]]]


def test_collate_by_hand() -> None:
    first = Row.from_encoded(Encoded([5, 6, 7], [False, True, True]))
    second = Row.from_encoded(Encoded([8, 9], [False, True]))
    third = Row.from_encoded(Encoded([10, 11, 12, 13, 14], [False, False, True, False, True]))
    batch = collate([[first, second], [third]])
    assert batch.input_ids_BW.tolist() == [[5, 6, 8, 0], [10, 11, 12, 13]]
    assert batch.position_ids_BW.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]
    assert batch.loss_positions_N.tolist() == [0, 1, 2, 5, 7]
    assert batch.labels_N.tolist() == [6, 7, 9, 12, 14]
    flat = collate([[first, second], [third]], flat=True)
    assert flat.input_ids_BW.tolist() == [[5, 6, 8, 10, 11, 12, 13]]
    assert flat.position_ids_BW.tolist() == [[0, 1, 0, 0, 1, 2, 3]]
    assert flat.cu_seqlens_R1 is not None
    assert flat.cu_seqlens_R1.tolist() == [0, 2, 3, 7]
    assert flat.max_seqlen == 4
    alone = collate([[first], [third]])
    assert alone.position_ids_BW.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    for nothing in (collate([]), collate([], flat=True)):
        assert nothing.input_ids_BW.tolist() == nothing.position_ids_BW.tolist() == [[0]]
        assert nothing.loss_positions_N.tolist() == nothing.labels_N.tolist() == []


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_packed_logits_are_those_of_single_rows(kind: str, attention: str) -> None:
    model = build(kind, attn_implementation=attention).eval()
    _, packed = rows()
    bins = [[packed[0], packed[1], packed[2]], [packed[3]], [packed[4], packed[5]]]
    for flat in (False, True):
        batch = collate(bins, flat=flat)
        ids, positions = batch.input_ids_BW, batch.position_ids_BW
        with torch.no_grad():
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            leaking = model(input_ids=ids, position_ids=positions, use_cache=True).logits
        differs = False
        for line, bin_ in enumerate([[row for each in bins for row in each]] if flat else bins):
            start = 0
            for row in bin_:
                with torch.no_grad():
                    alone = model(input_ids=torch.tensor(row.input_ids[None], dtype=torch.long), use_cache=False).logits
                part = (line, slice(start, start + len(row)))
                torch.testing.assert_close(logits[part], alone[0], rtol=1e-5, atol=1e-5)
                differs |= not torch.allclose(leaking[part], alone[0], atol=1e-2)
                start += len(row)
        # The rule `use_cache=False` is not decoration: this very batch leaks without it.
        assert differs


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", ["packed", "flat", "one row per bin"])
def test_loss_and_gradients_equal_plain_transformers(kind: str, tied: bool, shape: str) -> None:
    model = build(kind, tie_word_embeddings=tied).train()
    encoded, packed = rows()
    expected = loss_of_single_rows(model, encoded)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters)
    width = 60 if shape != "one row per bin" else max(len(row) for row in packed)
    bins = (
        pack([len(row) for row in packed], width) if shape != "one row per bin" else [[i] for i in range(len(packed))]
    )
    assert tied != any(name == "lm_head.weight" for name in names)
    loss_module.install(model, CROSS_ENTROPY)
    batch = collate([[packed[index] for index in bin_] for bin_ in bins], flat=shape == "flat")
    loss = model(batch).total
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, gradient, want in zip(names, torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5 * want.abs().max().item(), msg=name)
    loss_module.uninstall(model)
    assert model(input_ids=batch.input_ids_BW).logits.shape[-1] == 101


@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere", "gpt2"])
def test_heads_that_scale_or_cap_their_logits(kind: str) -> None:
    model = build(kind).eval()
    encoded, packed = rows(4)
    expected = loss_of_single_rows(model, encoded)
    loss_module.check_head(model)
    pack_rows = loss_module.rows_stay_apart(model)
    loss_module.install(model, CROSS_ENTROPY)
    bins = [[row] for row in packed] if not pack_rows else [packed[:2], packed[2:]]
    torch.testing.assert_close(model(collate(bins)).total, expected, rtol=1e-5, atol=1e-4)


def test_a_head_of_another_kind_is_refused() -> None:
    model = build("qwen3").eval()
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + torch.arange(101))
    with pytest.raises(UserError, match="Qwen3ForCausalLM: its logits"):
        loss_module.check_head(model)
    model.set_output_embeddings(torch.nn.Sequential(torch.nn.Linear(32, 101)))
    with pytest.raises(UserError, match="Sequential"):
        loss_module.install(model, CROSS_ENTROPY)


def test_a_model_whose_rows_see_each_other_is_found_out() -> None:
    model = build("qwen3")
    assert loss_module.rows_stay_apart(model)
    original = model.model.forward
    model.model.forward = lambda **batch: original(**{**batch, "use_cache": True})
    assert not loss_module.rows_stay_apart(model)


def test_shift_keeps_what_is_trained() -> None:
    encoded, packed = rows()
    for each, row in zip(encoded, packed, strict=True):
        trained = [token for token, flag in zip(each.input_ids, each.loss_mask, strict=True) if flag]
        assert row.target[row.loss_mask].tolist() == trained
        assert np.array_equal(row.input_ids[1:], row.target[:-1])


def a_row(*ids: int, trained: int) -> Row:
    return Row(np.array(ids[:-1], np.int32), np.array(ids[1:], np.int32), np.arange(len(ids) - 1) >= trained)


def test_the_id_of_a_row_is_the_same_in_every_version() -> None:
    """Caches on disk are keyed by it."""
    row = Row.from_encoded(Encoded([5, 6, 7], [False, False, True]))
    assert row.id.hex() == "f6f942b26bc7840f"
    # Rows that differ in their number of tokens, one token or one flag of the mask have other ids.
    others = [([5, 6], [False, True]), ([5, 6, 8], [False, False, True]), ([5, 6, 7], [False, True, True])]
    ids = {Row.from_encoded(Encoded(tokens, mask)).id for tokens, mask in others}
    assert len(ids | {row.id}) == 4


def test_the_id_of_a_row_is_a_digest_of_its_length_tokens_and_loss_mask() -> None:
    """Three tokens, so that the last one is not all but the first."""
    digest = hashlib.blake2b((3).to_bytes(4, "little"), digest_size=8)
    for part in (np.array([5, 6, 7, 8], np.int32), np.array([0b01100000], np.uint8)):
        digest.update(part.tobytes())
    row = a_row(5, 6, 7, 8, trained=1)
    assert row.id == digest.digest() == bytes.fromhex("b0f7bdde40b68091")
    others = [a_row(5, 6, 7, 9, trained=1), a_row(4, 6, 7, 8, trained=1), a_row(5, 6, 7, 8, trained=2)]
    assert len({row.id, *(other.id for other in others)}) == 4


def test_rows_are_told_apart_by_what_they_are_and_stay_as_they_are() -> None:
    row = a_row(5, 6, 7, 8, trained=1)
    assert row != a_row(5, 6, 7, 8, trained=1)  # comparing arrays would raise
    with pytest.raises(FrozenInstanceError):
        row.target = row.input_ids  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("length", [0, 9])
def test_a_row_that_has_no_place_in_a_bin_is_the_callers_mistake(length: int) -> None:
    with pytest.raises(AssertionError, match=f"row 1 has {length} tokens, a bin 8"):
        pack([4, length], 8)
