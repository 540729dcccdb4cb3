"""Likelihoods of given texts: transformers' own on several architectures, in bins and chunks of any size."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.evaluation import likelihood
from distill_lab.evaluation.likelihood import Likelihood, Pair, encode_pair, likelihoods, rolling_pairs, total
from distill_lab.models.loading import load_model
from distill_lab.models.plain_text import as_prompt, plain_text, text_ids
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.teachers import LiveTeacher
from tests.helpers import FAMILY

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Gemma 3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 5.0},
    ),
    "Qwen3-MoE": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "untied head": ("Qwen3ForCausalLM", "Qwen3Config", {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LiveTeacher:
    kind, config, settings = MODELS[request.param]
    torch.manual_seed(0)
    made = getattr(transformers, kind)(getattr(transformers, config)(**SIZES, **settings)).eval()
    for weight in made.parameters():
        weight.data *= 3  # probabilities that differ
    return LiveTeacher(made, decoder_and_head(made)[1].linear.out_features)


def make_pairs(number: int, *, longest: int = 40) -> list[Pair]:
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(300), k=length))

    return [Pair(ids(draw.randint(1, longest)), ids(draw.randint(1, 6))) for _ in range(number)]


def by_hand(model: LiveTeacher, pair: Pair) -> Likelihood:
    """From transformers' logits of the pair alone."""
    ids = torch.tensor([[*pair.context, *pair.continuation]])
    with torch.no_grad():
        log_p_LV = model.model(input_ids=ids).logits[0].float().log_softmax(-1)[len(pair.context) - 1 : -1]
    said = torch.tensor(pair.continuation)
    return Likelihood(float(log_p_LV[torch.arange(len(said)), said].sum()), bool((log_p_LV.argmax(-1) == said).all()))


def greedy(model: LiveTeacher, context: tuple[int, ...], number: int) -> tuple[int, ...]:
    ids = list(context)
    for _ in range(number):
        with torch.no_grad():
            ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(context) :])


@pytest.mark.parametrize(("tokens", "chunk"), [(8192, 4096), (64, 3)])
def test_they_are_transformers_own(
    model: LiveTeacher, tokens: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "MIN_CHUNK", 1)
    monkeypatch.setattr(likelihood, "MAX_CHUNK", chunk)
    pairs = make_pairs(12)
    context = pairs[0].context
    written = greedy(model, context, 3)
    # The letters of a multiple choice, what greedy decoding writes, and the same with a context one token longer.
    pairs += [Pair(context, (token,)) for token in range(4)]
    pairs += [Pair(context, written), Pair((*context, written[0]), written[1:])]
    found = dict(likelihoods(model, pairs, tokens_per_batch=tokens))
    assert sorted(found) == list(range(len(pairs)))
    for place, pair in enumerate(pairs):
        wanted = by_hand(model, pair)
        assert found[place].log_p == pytest.approx(wanted.log_p, abs=1e-4)
        assert found[place].is_greedy == wanted.is_greedy
    assert found[len(pairs) - 2].is_greedy
    assert found[len(pairs) - 1].is_greedy


def test_continuations_that_differ_in_their_last_token_are_one_row(
    model: LiveTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    own = LiveTeacher.signal
    monkeypatch.setattr(
        LiveTeacher, "signal", lambda self, batch: (read.append(len(batch.row_ids_R)), own(self, batch))[1]
    )
    context = make_pairs(1)[0].context
    pairs = [Pair(context, (7, token)) for token in range(5)] + [Pair((*context, 7), (token,)) for token in range(5)]
    found = dict(likelihoods(model, pairs))
    assert read == [1]
    first = by_hand(model, Pair(context, (7,))).log_p
    for token in range(5):
        assert found[token].log_p == pytest.approx(found[5 + token].log_p + first, abs=1e-4)


def test_a_batch_that_does_not_fit_is_halved(model: LiveTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    own = LiveTeacher.signal

    def signal(self: LiveTeacher, batch: Any) -> Any:
        if len(batch.row_ids_R) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return own(self, batch)

    pairs = make_pairs(4)
    whole = dict(likelihoods(model, pairs))
    monkeypatch.setattr(LiveTeacher, "signal", signal)
    for place, found in likelihoods(model, pairs):
        assert found.log_p == pytest.approx(whole[place].log_p, abs=1e-4)

    def none(self: LiveTeacher, batch: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LiveTeacher, "signal", none)
    with pytest.raises(UserError, match="out of memory with one text of"):
        list(likelihoods(model, pairs[:1]))


def test_a_long_text_is_read_in_parts_that_score_each_token_once(model: LiveTeacher) -> None:
    ids = tuple(range(5, 30))
    pairs = rolling_pairs(ids, 299, max_length=10)
    assert [token for pair in pairs for token in pair.continuation] == list(ids)
    assert pairs[0].context == (299,)
    assert all(len(pair.context) + len(pair.continuation) == 11 for pair in pairs)
    parts = [found for _, found in sorted(likelihoods(model, pairs), key=lambda each: each[0])]
    assert total(parts) == pytest.approx(sum(by_hand(model, pair).log_p for pair in pairs), abs=1e-3)
    assert rolling_pairs([], 299, max_length=10) == []


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FAMILY / "student")


def test_spaces_before_a_continuation_are_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    pair, cut = encode_pair(tokenizer, "The price is ", "3", max_length=100)
    other, _ = encode_pair(tokenizer, "The price is", " 3", max_length=100)
    assert pair == other
    assert not cut
    assert tokenizer.decode(list(pair.context)) == "The price is"
    assert tokenizer.decode(list(pair.continuation)) == " 3"


def test_a_text_without_context_follows_the_end_of_another(tokenizer: PreTrainedTokenizerBase) -> None:
    pair, _ = encode_pair(tokenizer, "", "The price", max_length=100)
    assert pair.context == (tokenizer.eos_token_id,)
    assert tokenizer.decode(list(pair.continuation)) == "The price"


def test_a_context_that_is_too_long_loses_its_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    pair, cut = encode_pair(tokenizer, "one two three " * 20, "four", max_length=12)
    assert cut
    assert len(pair.context) + len(pair.continuation) == 13
    with pytest.raises(UserError, match="the model reads 1 to 2 at once"):
        encode_pair(tokenizer, "one", "two three four five six seven", max_length=2)


def test_special_tokens_at_the_beginning_come_once(tokenizer: PreTrainedTokenizerBase) -> None:
    id = tokenizer.eos_token_id
    assert isinstance(id, int)
    start = tokenizer.decode([id])
    assert text_ids(tokenizer, f"{start}Hello")[0] == id
    assert text_ids(tokenizer, f"{start}Hello").count(id) == 1


def test_an_engine_continues_a_plain_text(random_model: Callable[..., Path]) -> None:
    from distill_lab.config import EngineConfig, SamplingConfig
    from distill_lab.generation.engines import load_engine
    from distill_lab.types import Prompt

    config = ModelConfig(model=str(random_model()), dtype="fp32")
    text = "What is 2 + 3?"
    assert plain_text(as_prompt(text)) == text
    assert plain_text([{"role": "user", "content": text}]) is None
    engine = load_engine(config, EngineConfig(engine="transformers"))
    [found] = engine.generate([Prompt("p", as_prompt(text))], SamplingConfig(max_new_tokens=5))
    loaded, tokenizer = load_model(config)
    made: Any = loaded
    ids = torch.tensor([tokenizer.encode(text)])
    written = made.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[
        0, ids.shape[1] :
    ]
    assert found.content == tokenizer.decode(written, skip_special_tokens=True)
