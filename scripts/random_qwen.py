"""Create a Qwen2.5 with random weights and a real tokenizer, for timings and trials without the real weights.

python -m scripts.random_qwen --tokenizer ../shared/data/tokenizers/qwen2.5 --hidden 64 --layers 2 --out random-qwen
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

QWEN25_VOCABULARY = 151_936
"""Embedding rows of Qwen2.5 0.5B to 3B; the tokenizer has fewer tokens."""


def build(tokenizer: Path, out: Path, *, hidden: int, layers: int, seed: int = 0) -> int:
    """Write the model and its tokenizer to `out`; return the number of parameters. `hidden` must be a multiple of 64."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=QWEN25_VOCABULARY,
            hidden_size=hidden,
            intermediate_size=hidden * 38 // 7,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(1, hidden // 448),
            max_position_embeddings=32_768,
            tie_word_embeddings=True,
            eos_token_id=loaded.eos_token_id,
            pad_token_id=loaded.pad_token_id,
        )
    )
    model.save_pretrained(out)
    loaded.save_pretrained(out)
    return model.num_parameters()


def main() -> None:
    """Parse the arguments and build the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory of a Qwen2.5 tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--hidden", type=int, default=896, help="hidden size; 896 is Qwen2.5-0.5B's (default)")
    parser.add_argument("--layers", type=int, default=24, help="number of layers; 24 is Qwen2.5-0.5B's (default)")
    arguments = parser.parse_args()
    number = build(arguments.tokenizer, arguments.out, hidden=arguments.hidden, layers=arguments.layers)
    print(f"{number:,} parameters in {arguments.out}")


if __name__ == "__main__":
    main()
