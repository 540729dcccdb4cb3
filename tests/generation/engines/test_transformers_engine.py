"""The transformers engine: greedy against `generate`, sampling against exact probabilities, and what may go wrong."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)
from transformers.cache_utils import DynamicLayer

from distill_lab.chat import prompt_ids
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.decoding.kv_cache import GrowingLayer, growing_cache
from distill_lab.generation.decoding.sampling import BLOCK
from distill_lab.generation.engines import engine_names, load_engine
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.types import Prompt
from tests.helpers import assert_equals_generate, by_id, make_engine, make_prompts


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15)


@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_equals_generate_with_ragged_prompts(random_model: Callable[..., Path], seed: int) -> None:
    engine = make_engine(random_model(seed=seed, initializer_range=0.15), num_ends=40)
    prompts = make_prompts(13, seed=seed)
    for penalty in (1.0, 1.3):
        ended = assert_equals_generate(engine, prompts, SamplingConfig(max_new_tokens=32, repetition_penalty=penalty))
        assert ended > 0


def test_greedy_equals_generate_beyond_the_first_room_of_the_cache(folder: Path) -> None:
    assert_equals_generate(make_engine(folder), make_prompts(2), SamplingConfig(max_new_tokens=300))


def make_gpt2(tokenizer: Any, *, num_positions: int) -> GPT2LMHeadModel:
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": num_positions,
    }
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends)).eval()


@pytest.mark.parametrize("kind", ["sliding window", "linear attention", "learned positions", "eager"])
def test_greedy_equals_generate_on_other_architectures(folder: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model: Any
    if kind == "sliding window":
        model = Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=16))
    elif kind == "linear attention":
        common |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
        model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**common, linear_value_head_dim=8))
    elif kind == "learned positions":
        model = make_gpt2(tokenizer, num_positions=512)
    else:
        model, _ = load_model(ModelConfig(model=str(folder)))
        model.set_attn_implementation("eager")
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    model.eval().generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 330)]
    assert_equals_generate(TransformersEngine(model, tokenizer), make_prompts(7), SamplingConfig(max_new_tokens=24))


def test_samples_follow_the_models_probabilities(folder: Path) -> None:
    engine = make_engine(folder)
    prompt = make_prompts(1)[0]
    sampling = SamplingConfig(max_new_tokens=1, temperature=1.0, top_k=8, num_samples=3000, seed=5)
    counts = Counter(row.content for row in engine.generate([prompt], sampling))
    ids = torch.tensor([prompt_ids(engine.tokenizer, prompt.messages)])
    with torch.inference_mode():
        top = engine.model(ids).logits[0, -1].double().topk(8)
    expected: Counter[str] = Counter()
    for token, share in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        expected[engine.io.text([token])] += share
    assert counts.keys() <= expected.keys()
    observed = [counts[text] for text in expected]
    assert stats.chisquare(observed, [3000 * share for share in expected.values()]).pvalue > 0.01


def test_a_completion_does_not_depend_on_its_batch(folder: Path) -> None:
    prompts = make_prompts(12)
    sampling = SamplingConfig(max_new_tokens=40, temperature=1.0, top_p=0.95, top_k=100, num_samples=2, seed=3)
    whole = by_id(make_engine(folder, num_ends=20).generate(prompts, sampling))
    assert len(whole) == 24
    assert len({row.content for row in whole.values()}) > 20
    single = make_engine(folder, num_ends=20, batch_size=1)
    assert by_id(single.generate(list(reversed(prompts)), sampling)) == whole
    few = make_engine(folder, num_ends=20, batch_size=5)
    assert by_id(row for prompt in prompts for row in few.generate([prompt], sampling)) == whole
    other = by_id(few.generate(prompts, sampling.model_copy(update={"seed": 4})))
    assert sum(other[key].content != row.content for key, row in whole.items()) > 20


def test_sampling_goes_on_past_one_block_of_numbers(folder: Path) -> None:
    sampling = SamplingConfig(max_new_tokens=BLOCK + 40, temperature=1.0)
    prompts = make_prompts(2)
    together = by_id(make_engine(folder).generate(prompts, sampling, min_new_tokens=BLOCK + 40))
    alone = by_id(make_engine(folder, batch_size=1).generate(prompts, sampling, min_new_tokens=BLOCK + 40))
    assert together == alone
    assert {row.num_tokens for row in together.values()} == {BLOCK + 40}


def test_stop_texts_end_completions_wherever_tokens_end(folder: Path) -> None:
    engine = make_engine(folder)
    prompts = make_prompts(6)
    free = by_id(engine.generate(prompts, SamplingConfig(max_new_tokens=40)))
    crossed = 0
    for prompt in prompts:
        text = free[prompt.id, 0].content
        ids = torch.tensor([prompt_ids(engine.tokenizer, prompt.messages)])
        model: Any = engine.model
        tokens = model.generate(ids, max_new_tokens=40, do_sample=False, attention_mask=torch.ones_like(ids))[0]
        tokens = tokens[ids.shape[1] :].tolist()
        for start in (5, 17):
            stop = text[start : start + 6]
            if "\ufffd" in stop:
                continue
            row = next(iter(engine.generate([prompt], SamplingConfig(max_new_tokens=40, stop=("@@never", stop)))))
            assert row.content == text[: text.index(stop)]
            assert row.finish_reason == "stop"
            assert stop in engine.io.text(tokens[: row.num_tokens])
            assert stop not in engine.io.text(tokens[: row.num_tokens - 1])
            crossed += stop not in engine.io.text(tokens[row.num_tokens - 1 : row.num_tokens])
    assert crossed > 2
    row = next(iter(engine.generate(prompts[:1], SamplingConfig(max_new_tokens=40, stop=("@@never",)))))
    assert row == free["p-0", 0]


def test_every_sampling_field_is_honoured_together(folder: Path) -> None:
    fields: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2}
    sampling = SamplingConfig(max_new_tokens=20, num_samples=2, **fields)
    prompts = make_prompts(4)
    whole = by_id(make_engine(folder).generate(prompts, sampling))
    assert by_id(make_engine(folder, batch_size=3).generate(prompts, sampling)) == whole
    for change in ({"temperature": 0.5}, {"top_p": 0.3}, {"top_k": 2}, {"min_p": 0.7}, {"repetition_penalty": 1.0}):
        assert by_id(make_engine(folder).generate(prompts, sampling.model_copy(update=change))) != whole, change


def limit_memory(model: PreTrainedModel, fits: Callable[[int, int], bool]) -> list[int]:
    """Make `model` run out of memory where `fits(rows, passes so far)` is false. Returns the rows of every try."""
    forward, tries = model.forward, []

    @functools.wraps(forward)
    def limited(*args: Any, **kwargs: Any) -> Any:
        plan = kwargs.get("generation_plan")
        tries.append(plan.num_rows if plan else kwargs["input_ids"].shape[0])
        if not fits(tries[-1], len(tries) - 1):
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    model.forward = limited
    return tries


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_out_of_memory_halves_the_batch_and_loses_nothing(folder: Path, temperature: float) -> None:
    prompts = make_prompts(30)
    sampling = SamplingConfig(max_new_tokens=24, temperature=temperature)
    whole = by_id(make_engine(folder, num_ends=20).generate(prompts, sampling))
    engine = make_engine(folder, num_ends=20)
    tries = limit_memory(engine.model, lambda rows, _: rows <= 8)
    assert by_id(engine.generate(prompts, sampling)) == whole
    assert tries[:3] == [30, 15, 8]
    # What fits is remembered.
    tries.clear()
    assert by_id(engine.generate(prompts, sampling)) == whole
    assert max(tries) <= 8


def test_out_of_memory_midway_keeps_the_tokens_there_are(folder: Path) -> None:
    prompts = make_prompts(9, longest=3)
    sampling = SamplingConfig(max_new_tokens=40, temperature=1.0, repetition_penalty=1.1)
    whole = by_id(make_engine(folder).generate(prompts, sampling))
    engine = make_engine(folder)
    tries = limit_memory(engine.model, lambda rows, passes: rows <= 4 or passes < 10)
    assert by_id(engine.generate(prompts, sampling)) == whole
    assert tries[:12] == [9] * 11 + [5]
    # The first ten passes are not repeated: three groups of three rows have thirty tokens each to go.
    assert len(tries) <= 12 + 3 * 31


def test_out_of_memory_with_one_row_is_an_error(folder: Path) -> None:
    engine = make_engine(folder)
    tries = limit_memory(engine.model, lambda *_: False)
    with pytest.raises(UserError, match=r"one prompt at a time .* lower max_new_tokens"):
        list(engine.generate(make_prompts(4), SamplingConfig(max_new_tokens=4)))
    assert tries == [4, 2, 1]


def test_other_errors_are_not_taken_for_memory(folder: Path) -> None:
    engine = make_engine(folder)

    @functools.wraps(engine.model.forward)
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("shapes do not match")

    engine.model.forward = broken
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(engine.generate(make_prompts(4), SamplingConfig(max_new_tokens=4)))


def test_not_a_number_is_refused(folder: Path) -> None:
    engine = make_engine(folder)
    next(engine.model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not a number"):
        list(engine.generate(make_prompts(2), SamplingConfig(max_new_tokens=4)))


def test_min_new_tokens_holds_back_every_end(folder: Path) -> None:
    engine = make_engine(folder, num_ends=200)
    prompts = make_prompts(8)
    sampling = SamplingConfig(max_new_tokens=30, temperature=1.0, stop=("e", "a"))
    short = [row.num_tokens for row in engine.generate(prompts, sampling)]
    assert min(short) < 12
    for row in engine.generate(prompts, sampling, min_new_tokens=12):
        assert row.num_tokens >= 12
    for row in engine.generate(prompts, sampling, min_new_tokens=30):
        assert (row.num_tokens, row.finish_reason) == (30, "length")


@pytest.mark.parametrize("learned_positions", [False, True])
def test_the_context_bounds_a_completion(random_model: Callable[..., Path], learned_positions: bool) -> None:
    engine = make_engine(random_model(max_position_embeddings=40))
    if learned_positions:
        engine = TransformersEngine(make_gpt2(engine.tokenizer, num_positions=40), engine.tokenizer)
    prompts = make_prompts(20)
    tokens = [len(prompt_ids(engine.tokenizer, prompt.messages)) for prompt in prompts]
    assert min(tokens) < 40 <= max(tokens)
    found = by_id(engine.generate(prompts, SamplingConfig(max_new_tokens=25), min_new_tokens=25))
    for prompt, number in zip(prompts, tokens, strict=True):
        row = found[prompt.id, 0]
        assert row.num_tokens == max(0, min(25, 40 - number))
        assert row.finish_reason == ("length" if number < 40 else "error")
        assert (row.error is None) == (number < 40)


def say(engine: TransformersEngine, text: str) -> None:
    """Make the model's next tokens those of `text` and the end token, whatever the prompt."""
    tokens = [*engine.tokenizer(text, add_special_tokens=False)["input_ids"], engine.tokenizer.eos_token_id]  # pyright: ignore[reportGeneralTypeIssues]
    forward, said = engine.model.forward, []

    @functools.wraps(forward)
    def scripted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[:, -1, tokens[len(said)]] = 1e4
        said.append(True)
        return output

    engine.model.forward = scripted


@pytest.mark.parametrize(
    ("text", "thinking", "content"),
    [
        ("<think>\ntwo and two\n</think>\n\nfour", "two and two", "four"),
        ("four, naïve 今天", None, "four, naïve 今天"),
        ("<think>\n\n</think>\n\nfour", None, "four"),
    ],
)
def test_thinking_is_split_from_the_answer(folder: Path, text: str, thinking: str | None, content: str) -> None:
    engine = make_engine(folder)
    say(engine, text)
    (row,) = engine.generate(make_prompts(1), SamplingConfig(max_new_tokens=60))
    assert (row.thinking, row.content, row.finish_reason) == (thinking, content, "stop")


def test_prompts_of_any_script_and_no_prompts_at_all(folder: Path) -> None:
    engine = make_engine(folder)
    assert list(engine.generate([], SamplingConfig())) == []
    texts = ["", "مرحبا بالعالم", "🙂🙃", "\u0000\u200b", "<|im_end|> [/foo]"]
    prompts = [Prompt(text, [{"role": "user", "content": text}]) for text in texts]
    found = by_id(engine.generate(prompts, SamplingConfig(max_new_tokens=5)))
    assert {key[0] for key in found} == set(texts)
    assert all(row.finish_reason != "error" for row in found.values())


def test_growing_layer_equals_transformers_own() -> None:
    generator = torch.Generator().manual_seed(0)
    layer, reference = GrowingLayer(headroom=3), DynamicLayer()
    for tokens in (4, 1, 1, 1, 1, 7, 1):
        keys, values = (torch.randn(3, 2, tokens, 5, generator=generator) for _ in range(2))
        for found, expected in zip(layer.update(keys, values), reference.update(keys, values), strict=True):
            assert torch.equal(found, expected)
        assert layer.get_seq_length() == reference.get_seq_length()
        assert layer.get_mask_sizes(1) == reference.get_mask_sizes(1)
    rows: Any = torch.tensor([2, 0])
    for cache in (layer, reference):
        cache.reorder_cache(rows)
        cache.crop(-2)
    keys, values = torch.randn(2, 2, 1, 5), torch.randn(2, 2, 1, 5)
    for found, expected in zip(layer.update(keys, values), reference.update(keys, values), strict=True):
        assert torch.equal(found, expected)


def test_growing_cache_takes_the_place_of_full_attention_only(folder: Path) -> None:
    config = Gemma3TextConfig(num_hidden_layers=6, sliding_window=16)
    kinds = [type(layer) is GrowingLayer for layer in growing_cache(config, headroom=8).layers]
    assert kinds == [kind == "full_attention" for kind in config.layer_types]  # pyright: ignore[reportOptionalIterable]
    model, _ = load_model(ModelConfig(model=str(folder)))
    assert all(type(layer) is GrowingLayer for layer in growing_cache(model.config, headroom=8).layers)


def test_engines_are_found_by_their_file_name(folder: Path) -> None:
    assert "transformers" in engine_names()
    model = ModelConfig(model=str(folder))
    for name in ("auto", "transformers"):
        engine = load_engine(model, EngineConfig(engine=name))
        assert len(list(engine.generate(make_prompts(2), SamplingConfig(max_new_tokens=2)))) == 2
    with pytest.raises(UserError, match=r"no engine 'tranformers'; choose from: auto, .*transformers"):
        load_engine(model, EngineConfig(engine="tranformers"))
    with pytest.raises(ModelError):
        load_engine(ModelConfig(model=str(folder / "nothing")), EngineConfig())
