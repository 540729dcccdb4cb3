"""A second tokenizer, made here, which is not the tiny family's: other tokens, ids, chat template and end token.

It is of Gemma's kind: spaces are U+2581, characters that the vocabulary lacks are bytes, runs of spaces are added tokens,
and there is no system role.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.helpers import toy_rows

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
QWEN_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizers split a text before they merge."""
TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    "{%- set role = 'model' if message.role == 'assistant' else message.role -%}"
    "{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"sliding_window": 8, "head_dim": 16}),
    "qwen3 experts": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16, "more": 16},
    ),
    "untied head with more rows": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False, "more": 64}),
}
"""Teachers: the classes of transformers, and what is special to each."""


def other_tokenizer(*, size: int = 200, byte_level: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer, of `size` pieces learned from the toy rows. byte_level: one of Qwen's kind, as its models load it."""
    texts = [message["content"] for row in toy_rows() for message in (*row["prompt"], *row["completion"])]
    backend = _byte_level(texts, size) if byte_level else _pieces(texts, size)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )  # fmt: skip
    if not byte_level:
        tokenizer.add_tokens([AddedToken("\u2581\u2581", normalized=False, special=False)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _byte_level(texts: list[str], size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLITS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _pieces(texts: list[str], size: int) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    learner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581\u2581"]
    names += [token for token in learned["vocab"] if token not in names]
    vocabulary = {token: id for id, token in enumerate(names)}
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def write_teacher(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """A random-weight model of `kind` with a tokenizer that its family loads."""
    config_name, model_name, special = KINDS[kind]
    tokenizer = other_tokenizer(byte_level=config_name.startswith("Qwen"))
    given: dict[str, Any] = {
        "vocab_size": len(tokenizer) + special.get("more", 0), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
        "initializer_range": 0.2, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    given |= {name: value for name, value in special.items() if name != "more"}
    torch.manual_seed(seed)
    build: Callable[[Any], Any] = getattr(transformers, model_name)
    build(getattr(transformers, config_name)(**given)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
