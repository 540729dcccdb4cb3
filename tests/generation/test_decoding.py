"""Decoding without padding: prefixes found and computed once, attention in parts, rows that join, leave and merge."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.generation.decoding import flat
from distill_lab.generation.decoding.attention import attend, attend_in_parts
from distill_lab.generation.decoding.batch_slab import BatchSlab
from distill_lab.generation.decoding.flat import FlatBatch, is_suitable
from distill_lab.generation.decoding.prefixes import Prefix, find_shared_prefixes
from distill_lab.generation.decoding.sequence import DecodingSequence
from distill_lab.generation.engines import transformers as engine_module
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.types import Prompt
from tests.helpers import assert_equals_generate, by_id, make_engine, make_prompts, passes, with_system


def always(tokens: int, rows: int) -> bool:
    return True


def spans(prompts: Sequence[Sequence[int]], found: Sequence[Prefix | None]) -> list[list[tuple[int, int]]]:
    """Per prompt where its prefixes begin and end, after a look at whether they are its tokens."""
    result = []
    for ids, prefix in zip(prompts, found, strict=True):
        path = list(prefix.path())[::-1] if prefix else []
        assert [token for each in path for token in each.ids] == list(ids[: prefix.end if prefix else 0])
        result.append([(each.end - len(each.ids), each.end) for each in path])
    return result


def test_prefixes_are_a_tree() -> None:
    system, examples = list(range(100)), list(range(500, 540))
    prompts = [
        system + examples + [1, 2],
        [*system, 7],
        system + examples + [1, 3],
        list(range(900, 990)),
        [*system, 8, 9],
    ]
    found = find_shared_prefixes(prompts, pays=always)
    deep, shallow = [(0, 100), (100, 141)], [(0, 100)]
    assert spans(prompts, found) == [deep, shallow, deep, [], shallow]
    assert found[0] is found[2]
    root = found[1]
    assert root is not None
    assert (root.num_waiting, found[0].num_waiting) == (4, 2)  # pyright: ignore[reportOptionalMemberAccess]


def test_equal_prompts_keep_their_last_token() -> None:
    ids = list(range(64))
    found = find_shared_prefixes([ids, ids, ids[:40], ids], pays=always)
    assert spans([ids, ids, ids[:40], ids], found) == [[(0, 39)]] * 4
    longer = [list(range(200))] * 3 + [list(range(100))]
    assert spans(longer, find_shared_prefixes(longer, pays=always)) == [[(0, 99), (99, 199)]] * 3 + [[(0, 99)]]


@pytest.mark.parametrize(
    "prompts", [[], [[1] * 50], [[1] * 20] * 3, [[1] * 33, [1] * 32 + [2]], [[place] * 60 for place in range(5)]]
)
def test_what_is_short_or_alone_is_not_shared(prompts: list[list[int]]) -> None:
    expected = [[(0, 32)]] * 2 if prompts and prompts[0] == [1] * 33 else [[]] * len(prompts)
    assert spans(prompts, find_shared_prefixes(prompts, pays=always)) == expected


def test_sharing_only_where_it_pays() -> None:
    common = list(range(50))
    prompts = [[*common, place, place] for place in range(6)] + [list(range(1000, 1080))] * 2
    found = find_shared_prefixes(prompts, pays=lambda tokens, rows: tokens * rows >= 250)
    assert spans(prompts, found) == [[(0, 50)]] * 6 + [[]] * 2
    # Where all together do not pay, some of them still may.
    prompts = [[1] * 40 + [place] for place in range(3)] + [[1] * 40 + [9] * 60 + [place] for place in range(3)]
    found = find_shared_prefixes(prompts, pays=lambda tokens, rows: tokens > 50)
    assert spans(prompts, found) == [[]] * 3 + [[(0, 100)]] * 3


def test_every_prefix_is_common_to_its_prompts_whatever_they_are() -> None:
    draw = random.Random(0)
    pieces = [[draw.randrange(3) for _ in range(draw.randint(1, 90))] for _ in range(8)]
    prompts = [[token for piece in draw.choices(pieces, k=draw.randint(1, 4)) for token in piece] for _ in range(60)]
    found = find_shared_prefixes(prompts, pays=always)
    assert sum(map(bool, spans(prompts, found))) > 20
    for prefix in filter(None, found):
        assert prefix.num_waiting == sum(prefix in other.path() for other in found if other)


def test_attention_in_parts_equals_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(3, 2, 7, 8, generator=generator) for _ in range(3))
    mask = torch.zeros(3, 1, 1, 7)
    mask[0, :, :, :2] = -torch.inf
    scores = query @ keys.transpose(2, 3) * 0.3
    for function in (attend, attend_in_parts):
        for given, expected_scores in (({}, scores), ({"mask": mask}, scores + mask)):
            output, sums = function(query, keys, values, 0.3, **given)  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(output, expected_scores.softmax(3) @ values)
            torch.testing.assert_close(sums, expected_scores.logsumexp(3))
        output, sums = function(query, keys, values, 0.3, causal=True)
        later = torch.ones(7, 7, dtype=torch.bool).triu(1)
        torch.testing.assert_close(output, scaled_dot_product_attention(query, keys, values, is_causal=True, scale=0.3))
        torch.testing.assert_close(sums, scores.masked_fill(later, -torch.inf).logsumexp(3))


def test_attention_in_parts_with_few_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = (torch.randn(2, 2, 9, 8) for _ in range(3))
    whole = attend_in_parts(query, keys, values, 0.3, causal=True)
    monkeypatch.setattr("distill_lab.generation.decoding.attention.MAX_SCORES", 2 * 2 * 9 * 2)
    for part, expected in zip(attend_in_parts(query, keys, values, 0.3, causal=True), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_cohorts_hold_what_was_written_whatever_joins_and_leaves() -> None:
    """Against lists: one number per row and token, in two layers."""
    draw = random.Random(0)

    def new(rows: list[list[float]], room: int) -> BatchSlab:
        slab = BatchSlab(list(map(len, rows)), num_layers=2, headroom=room)
        for layer in range(2):
            padded = [[99.0] * (slab.length - len(row)) + row for row in rows]
            keys = torch.tensor(padded)[:, None, :, None] + layer
            slab.store(layer, keys, -keys)
        return slab

    rows: list[list[float]] = [[draw.random() for _ in range(draw.randint(3, 9))] for _ in range(6)]
    slab = new(rows, 2)
    for turn in range(40):
        slab.make_room()
        fresh = [draw.random() for _ in rows]
        for row, number in zip(rows, fresh, strict=True):
            row.append(number)
        for layer in range(2):
            number_BGD = torch.tensor(fresh)[:, None, None] + layer
            keys, values = slab.append(layer, number_BGD, -number_BGD)
            assert torch.equal(keys, -values)
            mask = slab.mask(keys)
            for place, row in enumerate(rows):
                seen = keys[place, 0, :, 0]
                if mask is not None:
                    seen = seen[mask[place, 0, 0] == 0]
                torch.testing.assert_close(seen, torch.tensor(row) + layer)
        slab.length += 1
        if turn % 3 == 0 and len(rows) > 1:
            gone = draw.sample(range(len(rows)), draw.randint(1, min(3, len(rows) - 1)))
            rows = [rows[place] for place in slab.evict(gone)]
        if turn % 5 == 0:
            more = [[draw.random() for _ in range(draw.randint(1, slab.length))] for _ in range(draw.randint(1, 3))]
            slab.absorb(new(more, 1))
            rows += more
    assert slab.length < 60, "columns that only rows that left have used are given up"


@pytest.fixture(scope="module")
def grouped(random_model: Callable[..., Path]) -> Path:
    """Two query heads on each key-value head."""
    return random_model(initializer_range=0.15, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def eager_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small models share, split and merge where large ones would."""
    monkeypatch.setattr(engine_module, "extra_bytes", lambda device: 1)
    monkeypatch.setattr("distill_lab.generation.decoding.flat.extra_bytes", lambda device: 1500)


@pytest.mark.usefixtures("eager_to_share")
@pytest.mark.parametrize("batch_size", [0, 4])
def test_greedy_equals_generate_with_shared_prefixes(
    grouped: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(grouped, num_ends=100, batch_size=batch_size)
    prompts = with_system(make_prompts(14, longest=12), words=60, every=2)
    computed: list[Prefix] = []

    def counted(model: Any, prefix: Prefix, *more: Any) -> torch.Tensor:
        computed.append(prefix)
        return compute(model, prefix, *more)

    compute = flat._compute
    monkeypatch.setattr(flat, "_compute", counted)
    sampling = SamplingConfig(max_new_tokens=24, repetition_penalty=1.1)
    assert 0 < assert_equals_generate(engine, prompts, sampling) < 14
    assert computed[0].end > 60
    assert len(set(computed)) == len(computed), "each prefix is computed once"


@pytest.mark.usefixtures("eager_to_share")
def test_samples_of_one_prompt_share_it_and_do_not_depend_on_it(grouped: Path) -> None:
    prompts = with_system(make_prompts(3, longest=60), words=50)
    sampling = SamplingConfig(max_new_tokens=20, temperature=1.0, num_samples=5)
    engine = make_engine(grouped, num_ends=20)
    seen = passes(engine)
    together = by_id(engine.generate(prompts, sampling))
    assert len({row.content for row in together.values()}) > 10
    # The system message, what each of the three goes on with, and the last token of each: its samples begin alike.
    assert seen[4:6] == [3, 15]
    alone = make_engine(grouped, num_ends=20, batch_size=1)
    one = sampling.model_copy(update={"num_samples": 1})
    for prompt in prompts:
        assert by_id(alone.generate([prompt], one))[prompt.id, 0] == together[prompt.id, 0]
    assert by_id(alone.generate(prompts, sampling)) == together


def test_equal_prompts_that_are_too_short_to_share_are_computed_once(grouped: Path) -> None:
    engine = make_engine(grouped)
    seen = passes(engine)
    prompt = make_prompts(1, longest=3)
    rows = list(engine.generate(prompt, SamplingConfig(max_new_tokens=6, num_samples=7, temperature=1.0)))
    assert len({row.content for row in rows}) == 7
    assert seen[0] < 40
    assert seen[1:] == [7] * 5


def test_waiting_rows_take_the_places_of_those_that_are_done(grouped: Path) -> None:
    engine = make_engine(grouped, num_ends=40, batch_size=8)
    prompts = make_prompts(40, longest=4)
    seen = passes(engine)
    sampling = SamplingConfig(max_new_tokens=200, temperature=1.0)
    whole = by_id(make_engine(grouped, num_ends=40).generate(prompts, sampling))
    tokens = [whole[prompt.id, 0].num_tokens for prompt in prompts]
    assert max(tokens) > 4 * np.median(tokens)
    assert by_id(engine.generate(prompts, sampling)) == whole
    # In five batches of eight, each as long as its longest row, there would be about as many passes as here tokens.
    assert len(seen) < 0.8 * sum(max(tokens[first : first + 8]) for first in range(0, 40, 8))
    assert max(size for size in seen if size <= 8) == 8


def test_a_batch_without_rows_left_goes_on_with_the_next(grouped: Path) -> None:
    engine = make_engine(grouped, batch_size=2)
    rows = by_id(engine.generate(make_prompts(5), SamplingConfig(max_new_tokens=1)))
    assert len(rows) == 5


def test_prefixes_are_forgotten_with_their_last_row() -> None:
    parent = Prefix([1, 2], None, 2, 0, 2)
    child = Prefix([3], parent, 3, 1, 1)
    for prefix in (parent, child):
        prefix.keys_values.append((torch.zeros(1), torch.zeros(1)))
    child.row_done()
    assert (parent.keys_values != [], child.keys_values) == (True, [])
    parent.row_done()
    assert parent.keys_values == []


def test_what_is_not_plain_attention_is_left_to_transformers(folder_of_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder_of_tokenizer)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    assert is_suitable(LlamaForCausalLM(LlamaConfig(**sizes)).eval())
    assert not is_suitable(Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=8)).eval())
    sizes |= {"layer_types": ["full_attention"] * 2}
    assert is_suitable(Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=None)).eval())
    # So small a model's scores are far from the cap: that there is one decides.
    assert not is_suitable(Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=50.0)).eval())


@pytest.fixture(scope="module")
def folder_of_tokenizer(random_model: Callable[..., Path]) -> Path:
    return random_model()


def test_the_models_own_attention_is_put_back(grouped: Path) -> None:
    engine = make_engine(grouped)
    before = engine.model.config._attn_implementation
    list(engine.generate(make_prompts(2), SamplingConfig(max_new_tokens=2)))
    assert engine.model.config._attn_implementation == before == "sdpa"


def stories(path: Path) -> LlamaForCausalLM:
    """The 260K Llama of llama2.c, read from its own format."""
    data = path.read_bytes()
    hidden, wide, layers, heads, groups, vocabulary, context = struct.unpack("7i", data[:28])
    numbers = np.frombuffer(data, dtype=np.float32, offset=28).copy()
    size = hidden // heads
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    place = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        count = int(np.prod(shape))
        place += count
        return torch.from_numpy(numbers[place - count : place]).view(*shape)

    def halves(weight: torch.Tensor, number: int) -> torch.Tensor:
        """Rotary pairs (0, 1), (2, 3).. of each head as (0, D/2), (1, D/2 + 1).."""
        rows, columns = weight.shape
        return weight.view(number, rows // number // 2, 2, columns).transpose(1, 2).reshape(rows, columns)

    state = {"model.embed_tokens.weight": take(vocabulary, hidden)}
    shapes = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (groups * size, hidden),
        "self_attn.v_proj": (groups * size, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "mlp.up_proj": (wide, hidden),
    }
    for name, shape in shapes.items():
        for layer in range(layers):
            weight = take(*shape)
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, heads if name.endswith("q_proj") else groups)
            state[f"model.layers.{layer}.{name}.weight"] = weight
    state["model.norm.weight"] = take(hidden)
    model = LlamaForCausalLM(config).eval()
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    return model


@pytest.mark.usefixtures("eager_to_share")
def test_a_trained_llama_continues_as_generate_does(shared_data: Path) -> None:
    model = stories(shared_data / "weights" / "stories260K" / "stories260K.bin")
    assert is_suitable(model)
    draw = random.Random(0)
    start = [1] + [draw.randrange(259, 512) for _ in range(40)]
    prompts = [start + [draw.randrange(259, 512) for _ in range(draw.randint(1, 30))] for _ in range(12)]
    rows = [DecodingSequence(Prompt(str(place), []), 0, ids, 40) for place, ids in enumerate(prompts)]
    for row, prefix in zip(rows, find_shared_prefixes(prompts, pays=always), strict=True):
        row.prefix = prefix
    assert all(row.prefix and row.prefix.end == 41 for row in rows)
    sampler = engine_module.Sampler(SamplingConfig(), vocabulary=512, end_ids=(), min_new_tokens=0)
    batch = FlatBatch(model, sampler, bytes_per_token=2 * 5 * 4 * 8 * 4, headroom=8)
    made, late = batch.add(rows[:7]), rows[7:]
    while batch.rows:
        for row, token in made:
            row.tokens.append(token)
            row.done = len(row.tokens) == row.limit
        if any(row.done for row in batch.rows):
            batch.evict()
        if late and len(rows[0].tokens) == 9:
            made, late = batch.add(late), []
        else:
            made = batch.step() if batch.rows else []
    peer: Any = model
    for row in rows:
        ids = torch.tensor([row.prompt_ids])
        expected = peer.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=None
        )
        assert row.tokens == expected[0, len(row.prompt_ids) :].tolist()


def test_the_tiny_teacher_answers_as_with_generate() -> None:
    from itertools import islice

    from distill_lab.tiny.tasks import rows

    engine = TransformersEngine(*load_model(ModelConfig(model="tiny:teacher")))
    kinds = ("problems", "instructions")
    prompts = [
        Prompt(f"{kind}-{place}", row["messages"][:1])
        for kind in kinds
        for place, row in enumerate(islice(rows(kind, "test"), 4))
    ]
    assert engine._flat
    assert assert_equals_generate(engine, prompts, SamplingConfig(max_new_tokens=60)) > 4
