"""Models of other architectures answer every prompt, batch after batch, as `generate` does; what they are is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.ask import ask
from distill_lab.generation.decoding import flat
from distill_lab.generation.engines import complete, load_engine
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.grading.graders.judge import Judge
from distill_lab.models.loading import load_model
from distill_lab.types import Completion, Prompt
from tests.helpers import assert_equals_generate, by_id, make_prompts

FLAT = {"GPT-2", "OPT", "Qwen2, its head a tensor of its own", "Llama, its head a tensor of its own", "Qwen3-MoE"}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window": 16}),
    "Qwen3.5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", LINEAR),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "intermediate_size": 16},
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "OPT": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS),
    "Qwen2, its head a tensor of its own": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "Llama, its head a tensor of its own": ("LlamaForCausalLM", "LlamaConfig", {}),
}


def make_model(kind: str, tokenizer: Any) -> PreTrainedModel:
    """A random model of that architecture, its logits far apart, and with more ends than its tokenizer's."""
    name, config, more = KINDS[kind]
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "n_embd" in more:
        common = {key: common[key] for key in ("vocab_size", "eos_token_id", "bos_token_id")}
    torch.manual_seed(0)
    model: Any = getattr(transformers, name)(getattr(transformers, config)(**(common | more)))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    model.eval().generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 330)]
    return model


@pytest.fixture(scope="module")
def tokenizer(random_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(random_model())


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_is_answered_as_generate_does(kind: str, tokenizer: Any) -> None:
    engine = TransformersEngine(make_model(kind, tokenizer), tokenizer, batch_size=2)
    assert engine._flat == (kind in FLAT)
    assert_equals_generate(engine, make_prompts(9), SamplingConfig(max_new_tokens=16))
    assert ("decoding with padding" in engine.note) == (kind not in FLAT)


def test_samples_do_not_depend_on_the_batch_there_either(tokenizer: Any) -> None:
    sampling = SamplingConfig(max_new_tokens=10, temperature=1.0, top_p=0.9, num_samples=3)
    model = make_model("Gemma 3", tokenizer)
    found = [
        {key: row.content for key, row in by_id(TransformersEngine(model, tokenizer, batch_size=size).generate(
            make_prompts(5), sampling)).items()}
        for size in (1, 2, 15)
    ]  # fmt: skip
    assert len(found[0]) == 15
    assert found[0] == found[1] == found[2]


def test_a_model_over_several_devices_is_padded_and_answers_all(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(ModelConfig(model=str(random_model(initializer_range=0.15))))
    # A second device that this machine lacks, as accelerate's hooks would hide it.
    away = torch.nn.Parameter(torch.empty(1, device="meta"))
    weights = [*model.parameters(), away]
    monkeypatch.setattr(type(model), "parameters", lambda self, recurse=True: iter(weights))
    engine = TransformersEngine(model, tokenizer, batch_size=2)
    monkeypatch.undo()
    assert "several devices" in engine.note
    assert_equals_generate(engine, make_prompts(9), SamplingConfig(max_new_tokens=8))


def test_a_trial_that_differs_is_told_with_how_much(
    random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(model=str(random_model()))
    monkeypatch.setattr(flat, "TRIAL_TOLERANCE", -1.0)
    notes: list[str] = []
    load_engine(model, EngineConfig(engine="transformers"), on_note=notes.append)
    assert len(notes) == 1
    assert "in a trial its logits differed by 0.0%" in notes[0]
    assert model.model in notes[0]


def test_judging_and_asking_get_an_answer_for_every_prompt(tokenizer: Any) -> None:
    model = make_model("Qwen3.5", tokenizer)
    answers = ask(model, tokenizer, [(prompt.messages[0]["content"], "") for prompt in make_prompts(5)],
                  SamplingConfig(max_new_tokens=4), batch_size=2)  # fmt: skip
    assert [answer.id for answer in answers] == [str(place) for place in range(5)]


class Forgetful:
    """Answers all prompts but the last."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        for prompt in prompts[:-1]:
            yield Completion(prompt.id, 0, "4", None, "stop", 1)


def test_too_few_completions_are_an_error_and_not_a_verdict() -> None:
    prompts = make_prompts(3)
    with pytest.raises(UserError, match="returned only 2 of 3 completions"):
        list(complete(Forgetful(), prompts, SamplingConfig()))
    answer = Completion("p", 0, "an answer", None, "stop", 3)
    with pytest.raises(UserError, match="returned only 2 of 3 completions"):
        Judge(Forgetful()).grade_all([(prompt, answer) for prompt in prompts])
