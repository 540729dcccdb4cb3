"""Packed layers beside plain ones: tokens per second of the same model, prompts and dtype, in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.packing --model qwen2.5-coder-0.5b --rows 1 8 16 32

Seconds are CPU seconds of this process, medians over rounds; a ratio is taken within a round. Every answer has --tokens
tokens. `prompt` is the time of reading the prompts (one token each). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.models.packed_linear import pack_linears
from distill_lab.types import Prompt

TEXT = "A box holds {} eggs, and a farmer fills several such boxes every morning. How many eggs are in {} boxes?"


def seconds(engine: TransformersEngine, rows: int, tokens: int) -> float:
    """CPU seconds for one batch."""
    prompts = [Prompt(str(row), [{"role": "user", "content": TEXT.format(row + 2, row + 7)}]) for row in range(rows)]
    start = time.process_time()
    list(engine.generate(prompts, SamplingConfig(max_new_tokens=tokens), min_new_tokens=tokens))
    return time.process_time() - start


def main() -> None:
    """Load the model twice, pack one, and time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print("| dtype, rows | plain tokens/s | packed tokens/s | times as fast | prompt, times as fast |")
    print("|---|---|---|---|---|")
    for dtype in given.dtype:
        engines = {}
        for name in ("plain", "packed"):
            model, tokenizer = load_model(ModelConfig(model=given.model, dtype=dtype))
            number = pack_linears(model) if name == "packed" else 0
            engines[name] = TransformersEngine(model, tokenizer)
        if not number:
            print(f"| {dtype} | packing gains nothing here | | | |")
            continue
        for rows in given.rows:
            taken: dict[str, list[tuple[float, float]]] = {"plain": [], "packed": []}
            for turn in range(given.rounds + 1):
                for name in sorted(engines, reverse=bool(turn % 2)):
                    short = seconds(engines[name], rows, 1)
                    long = seconds(engines[name], rows, given.tokens + 1)
                    if turn:  # the first round warms up
                        taken[name].append((short, long - short))
            pace = {name: rows * given.tokens / median(each for _, each in times) for name, times in taken.items()}
            pairs = list(zip(taken["plain"], taken["packed"], strict=True))
            row = {
                **{f"{name}_tokens_per_s": value for name, value in pace.items()},
                "ratio": median(plain[1] / packed[1] for plain, packed in pairs),
                "prompt_ratio": median(plain[0] / packed[0] for plain, packed in pairs),
            }
            found[f"{dtype}, {rows}"] = row
            print(
                f"| {dtype}, {rows} | {pace['plain']:.1f} | {pace['packed']:.1f} | {row['ratio']:.2f} "
                f"| {row['prompt_ratio']:.2f} |",
                flush=True,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
