"""Students as strangers read them: saved by the lab, loaded by transformers 4, converted and run by llama.cpp.

`make test-interop` makes the environment .venv-interop (transformers 4, llama.cpp's converter and library) and runs this
file; without that environment it is skipped. DISTILL_LAB_REAL (`DIR=`) names a folder with a directory for each of several
real Qwen models; the smallest is tried as well.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from distill_lab.chat import prompt_ids
from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines import load_engine
from distill_lab.models.loading import load_model
from distill_lab.tiny import FAMILY
from distill_lab.tiny.tasks import rows as task_rows
from distill_lab.train.lora import merge_directory
from distill_lab.train.portable import make_portable
from distill_lab.train.student import train_student
from distill_lab.types import Message, Prompt
from tests.helpers import base_model, real_models, toy_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BASE = 1_000_000.0
IDS = list(range(5, 125))
"""Long enough for another rotary base to show."""
TEXT = "12 apples, naïve 漢字\n\n\tdef f(): <|im_end|>"
WIDTHS: dict[str, Any] = {"vocab_size": 1280, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {**WIDTHS, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
SLIDING = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": BASE}}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": BASE}
KINDS: dict[str, Any] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**HEADS, rope_parameters=ROPE)),
    "qwen2 with yarn": (
        Qwen2ForCausalLM,
        Qwen2Config(
            **HEADS,
            rope_parameters={**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ),
    "llama 3": (
        LlamaForCausalLM,
        LlamaConfig(**HEADS, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_3}),
    ),
    "gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **HEADS,
            head_dim=16,
            sliding_window=32,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={**SLIDING, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        ),
    ),
    "phi 3": (
        Phi3ForCausalLM,
        Phi3Config(
            **{**HEADS, "max_position_embeddings": 128},
            pad_token_id=0,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0 + place / 8 for place in range(8)],
                "long_factor": [2.0 + place for place in range(8)],
                "original_max_position_embeddings": 64,
            },
        ),
    ),
    "gpt neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **WIDTHS,
            num_attention_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5},
        ),
    ),
    "qwen3 moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **{**HEADS, "head_dim": 16},
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            rope_parameters=ROPE,
        ),
    ),
}


def last_logits(folder: Path, ids: list[int] = IDS) -> torch.Tensor:
    """What the lab computes after `ids`, in fp32 as the other side does: on some CPUs auto is bf16."""
    model, _ = load_model(ModelConfig(model=str(folder), dtype="fp32"))
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def test_logits_of_every_kind_of_rotary_embedding(strangers: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "student")
    for name, (kind, config) in KINDS.items():
        torch.manual_seed(0)
        model = kind(config).eval()
        model.save_pretrained(tmp_path / name)
        make_portable(tmp_path / name, tokenizer, model.generation_config)
    found = strangers([{"do": "transformers", "folder": str(tmp_path / name), "ids": IDS} for name in KINDS])
    wrong = {}
    for name, row in zip(KINDS, found, strict=True):
        error = (torch.tensor(row["logits"]) - last_logits(tmp_path / name)).abs().max().item()
        if error > 1e-4:
            wrong[name] = error
    assert not wrong


def test_a_trained_base_model_answers_and_ends_as_in_the_lab(strangers: Any, tmp_path: Path) -> None:
    """Full, adapters, merged by the training, merged later: of a base model whose own text ends with <|endoftext|>."""
    base, rows = base_model(tmp_path / "base"), tmp_path / "rows.jsonl"
    write_jsonl(rows, toy_rows(8))
    config = TrainConfig(learning_rate=1e-5, tokens_per_batch=128, max_steps=2, validation_fraction=0)
    train_student(base, rows, tmp_path / "full", config)
    adapters = config.model_copy(update={"learning_rate": 1e-3, "lora": LoraConfig(r=4)})
    train_student(base, rows, tmp_path / "adapters", adapters)
    train_student(base, rows, tmp_path / "merged", adapters.model_copy(update={"lora": LoraConfig(r=4, merge=True)}))
    merge_directory(ModelConfig(model=str(tmp_path / "adapters")), tmp_path / "later")
    messages: list[Message] = next(iter(task_rows("problems", "test")))["messages"][:1]
    names = ("full", "adapters", "merged", "later")
    found = strangers(
        [
            {
                **{"do": "transformers", "folder": str(tmp_path / name), "ids": IDS},
                **{"messages": messages, "max_new_tokens": 160, "text": TEXT},
            }
            for name in names
        ]
    )
    for name, row in zip(names, found, strict=True):
        folder = tmp_path / name
        torch.testing.assert_close(torch.tensor(row["logits"]), last_logits(folder), rtol=1e-4, atol=1e-4)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert row["class"] == "PreTrainedTokenizerFast"
        assert row["prompt"] == prompt_ids(tokenizer, messages)
        assert (row["eos"], row["pad"]) == ("<|im_end|>", "<|endoftext|>")
        assert row["encoded"] == tokenizer.encode(TEXT, add_special_tokens=False)
        assert row["decoded"] == tokenizer.decode(row["encoded"])
        engine = load_engine(ModelConfig(model=str(folder), dtype="fp32"), EngineConfig(engine="transformers"))
        (ours,) = engine.generate([Prompt("p", messages)], SamplingConfig(max_new_tokens=160))
        assert ours.finish_reason == "stop"
        if name != "adapters":  # peft attaches to the base, whose own settings then end the text
            assert row["made"][-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
            assert len(row["made"]) == ours.num_tokens
        said = row["text"].partition("</think>")
        assert ours.content in said[0] + said[2]


def qwen_of_random_weights(folder: Path, tokenizer: Path, rows: Path) -> Path:
    """A small random Qwen2 with the real tokenizer, trained for two steps."""
    torch.manual_seed(0)
    config = Qwen2Config(**{**HEADS, "vocab_size": 151_936, "tie_word_embeddings": True}, rope_parameters=ROPE)
    Qwen2ForCausalLM(config).save_pretrained(folder / "base")
    shutil.copytree(tokenizer, folder / "base", dirs_exist_ok=True)
    train = TrainConfig(learning_rate=1e-3, tokens_per_batch=512, max_steps=2, validation_fraction=0)
    train_student(ModelConfig(model=str(folder / "base")), rows, folder / "student", train)
    return folder / "student"


def assert_converted(strangers: Any, student: Path, out: Path, kind: str, length: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    messages: list[Message] = [{"role": "user", "content": "Write the word apple three times."}]
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    job = {"do": "convert", "folder": str(student), "out": str(out), "type": kind, "prompt": prompt}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (found,) = strangers([job | {"max_new_tokens": length, "end": end}])
    assert "error" not in found, found["error"]
    assert (found["base"], found["eos"], found["ends"]) == (BASE, end, True)
    assert found["template"] == tokenizer.chat_template
    assert found["ids"] == prompt_ids(tokenizer, messages)
    engine = load_engine(ModelConfig(model=str(student), dtype="fp32"), EngineConfig(engine="transformers"))
    (ours,) = engine.generate([Prompt("p", messages)], SamplingConfig(max_new_tokens=length))
    assert found["text"].strip() == ours.content.strip()


def test_llama_cpp_converts_and_answers_alike(strangers: Any, shared_data: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", toy_rows(8))
    student = qwen_of_random_weights(tmp_path, shared_data / "tokenizers" / "qwen2.5", tmp_path / "rows.jsonl")
    assert_converted(strangers, student, tmp_path / "student.gguf", "f32", 8)


@pytest.mark.skipif(not os.environ.get("DISTILL_LAB_REAL"), reason="no real models (make test-interop DIR=folder)")
def test_a_real_qwen_with_merged_adapters(strangers: Any, tmp_path: Path) -> None:
    real = ModelConfig(model=real_models(os.environ["DISTILL_LAB_REAL"])[1])
    write_jsonl(tmp_path / "rows.jsonl", toy_rows(8))
    lora = LoraConfig(r=8, targets=("q_proj", "v_proj"), merge=True)
    train = TrainConfig(learning_rate=1e-4, tokens_per_batch=256, max_steps=2, validation_fraction=0, lora=lora)
    train_student(real, tmp_path / "rows.jsonl", tmp_path / "student", train)
    messages: list[Message] = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
    job = {"do": "transformers", "folder": str(tmp_path / "student"), "ids": IDS, "messages": messages}
    (found,) = strangers([job | {"max_new_tokens": 40, "text": TEXT}])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert found["class"] == "Qwen2TokenizerFast"
    assert found["prompt"] == prompt_ids(tokenizer, messages)
    assert found["encoded"] == tokenizer.encode(TEXT, add_special_tokens=False)
    torch.testing.assert_close(torch.tensor(found["logits"]), last_logits(tmp_path / "student"), rtol=1e-3, atol=2e-3)
    assert_converted(strangers, tmp_path / "student", tmp_path / "student.gguf", "auto", 24)
