"""The vocabulary of a GGUF file: a Hugging Face tokenizer -> the keys `tokenizer.ggml.*` that llama.cpp reads.

Byte-level BPE tokenizers only, which is what the Qwen models have. llama.cpp knows how text is split before the merges by a
name, not by the expression itself, so the expression has to be one of `PRE_TOKENIZERS`; any other is refused, because with
the wrong one the same text becomes other tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill_lab.chat import end_token_ids
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedTokenizerBase

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {(GPT2,): "gpt-2", (QWEN2,): "qwen2", (r"\p{N}", GPT2): "smollm", (r"\d", GPT2): "smollm"}
"""Expressions that split text, one after the other -> llama.cpp's name for them."""
CONTROL_LOOK = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<pad>|<mask>", re.DOTALL)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens in a GGUF file: found by merges; never in plain text; found first; without a text."""


def add_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, *, size: int
) -> None:
    """Write tokens, merges, ends and the chat template. size: rows of the embedding.

    Raises UserError for a tokenizer that llama.cpp would read differently.
    """
    backend = json.loads(_backend(tokenizer).to_str())
    if backend["model"]["type"] != "BPE" or backend["model"].get("byte_fallback"):
        raise UserError(f"{tokenizer.name_or_path}: {_REFUSED.format('its tokenizer is not byte-level BPE')}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(backend, tokenizer.name_or_path))
    texts, kinds = _tokens(tokenizer, size)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    merges = backend["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    end = end_token_ids(tokenizer, generation)[0]
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    if isinstance(tokenizer.bos_token_id, int):
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if isinstance(tokenizer.pad_token_id, int):
        writer.add_pad_token_id(tokenizer.pad_token_id)
    first = tokenizer("a").input_ids[:1]
    writer.add_add_bos_token(first == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(template)


def pre_tokenizer(backend: Mapping[str, Any], name: str) -> str:
    """llama.cpp's name for how a `tokenizer.json` splits text before merges. Raises UserError for one it has no name for."""
    steps = backend.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    found: list[str] = []
    known = True
    for step in steps:
        if step.get("type") == "Split":
            found.append(step["pattern"].get("Regex", ""))
            known &= step["behavior"] == "Isolated" and not step["invert"]
        elif step.get("type") == "ByteLevel":
            known &= not step.get("add_prefix_space", True)
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            known = False
    if not known or tuple(found) not in PRE_TOKENIZERS:
        raise UserError(
            f"{name}: {_REFUSED.format('its tokenizer splits text in a way that has no known name in GGUF')}"
        )
    return PRE_TOKENIZERS[tuple(found)]


_REFUSED = (
    "{}; export it with `--to safetensors` and convert that directory with convert_hf_to_gguf.py of llama.cpp, which knows "
    "more tokenizers"
)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{tokenizer.name_or_path}: {_REFUSED.format('it has no tokenizer.json')}")
    return backend


def _tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every row of the embedding; rows that no token uses get a text that nobody writes."""
    texts, kinds = [f"[PAD{row}]" for row in range(size)], [UNUSED] * size
    for text, row in tokenizer.get_vocab().items():
        if row < size:
            texts[row], kinds[row] = text, NORMAL
    for row, token in tokenizer.added_tokens_decoder.items():
        if row < size:
            texts[row], kinds[row] = (
                token.content,
                CONTROL if token.special or _looks_like_control(token.content) else USER_DEFINED,
            )
    return texts, kinds


def _looks_like_control(text: str) -> bool:
    """Whether a token that is not marked as special steers the model all the same (Qwen's `<|fim_pad|>`).

    llama.cpp's converter goes by the look as well; otherwise llama.cpp would show these tokens, and find them in plain text.
    """
    return CONTROL_LOOK.fullmatch(text) is not None
