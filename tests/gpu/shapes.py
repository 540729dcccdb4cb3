"""Models of random weights in the shapes of real ones, prompts of very different lengths, rows of a chosen length.

A name of SHAPES -> a Hugging Face directory with the tiny family's tokenizer. `small` shrinks every shape to some thousand
weights of the same kind, so that what is done to them can be tried on a CPU.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from distill_lab.files.jsonl import write_jsonl
from distill_lab.tiny import FAMILY
from distill_lab.train.portable import make_portable
from distill_lab.types import Prompt

VOCABULARY = 151_936


def _qwen2(hidden: int, inner: int, layers: int, heads: int, groups: int, *, tied: bool = True) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    heads_: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": groups, "tie_word_embeddings": tied}
    return Qwen2ForCausalLM, Qwen2Config(**sizes, **heads_, vocab_size=VOCABULARY, max_position_embeddings=8192)


def _qwen3(hidden: int, inner: int, layers: int) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    common: dict[str, Any] = {"tie_word_embeddings": True, "vocab_size": VOCABULARY, "max_position_embeddings": 8192}
    return Qwen3ForCausalLM, Qwen3Config(**sizes, **heads, **common)


def _moe() -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 4}
    experts: dict[str, Any] = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
    return Qwen3MoeForCausalLM, Qwen3MoeConfig(**sizes, **experts, **heads, vocab_size=VOCABULARY)


SHAPES = {
    "qwen2.5-0.5b": lambda: _qwen2(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": lambda: _qwen2(1536, 8960, 28, 12, 2),
    "qwen2.5-7b": lambda: _qwen2(3584, 18_944, 28, 28, 4, tied=False),
    "qwen3-0.6b": lambda: _qwen3(1024, 3072, 28),
    "qwen3-1.7b": lambda: _qwen3(2048, 6144, 28),
    "qwen3-30b-a3b, 4 layers": _moe,
}
SMALL: dict[str, int] = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 1280, "max_position_embeddings": 2048, "head_dim": 16},
}
SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def build(shape: str, *, small: bool, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of random weights on `device`, in evaluation mode."""
    kind, config = SHAPES[shape]()
    for name, value in {**SMALL, **SMALL_EXPERTS}.items() if small else ():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    tokenizer = load_tokenizer()
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(seed)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = kind(config)
        finally:
            torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def folder(shape: str, scratch: Path, *, small: bool, device: torch.device, dtype: torch.dtype) -> Path:
    """A directory with such a model, written once for all checks that share `scratch`."""
    path = scratch / f"{shape.replace(', ', '-').replace(' ', '-')}{'-small' if small else ''}-{str(dtype)[6:]}"
    if not (path / "tokenizer_config.json").is_file():
        model = build(shape, small=small, device=device, dtype=dtype)
        model.save_pretrained(path)
        make_portable(path, load_tokenizer(), model.generation_config)
    return path


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The tiny family's: real Qwen vocabularies have more rows than tokens, too."""
    return AutoTokenizer.from_pretrained(FAMILY / "teacher")


WORDS = "apple river seven stone quick answer number people before small light".split()


def prompts(number: int, *, most_words: int = 200, seed: int = 0) -> list[Prompt]:
    """Questions of 1 to `most_words` words."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, most_words))) for _ in range(number)]
    return [Prompt(str(place), [{"role": "user", "content": text}]) for place, text in enumerate(texts)]


def write_rows(path: Path, number: int, *, words: int, seed: int = 0) -> Path:
    """Training rows whose answers have so many words."""
    draw = random.Random(seed)
    made = (
        {
            "prompt": [{"role": "user", "content": f"Row {place}: " + " ".join(draw.choices(WORDS, k=8))}],
            "completion": [{"role": "assistant", "content": " ".join(draw.choices(WORDS, k=words))}],
        }
        for place in range(number)
    )
    write_jsonl(path, made)
    return path
