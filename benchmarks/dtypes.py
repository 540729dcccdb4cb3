"""What a CPU gains from bf16 with one model: tokens per second of generation in fp32 and bf16, and how many tokens agree.

In: a model directory. Out: one line per dtype and number of prompts, greedy answers of exactly --tokens tokens:
tokens/s by the clock and by the processor's time (of a machine that does other things as well), and last the share of
answer tokens, given the same text before them, at which bf16 would choose what fp32 did.

    python benchmarks/dtypes.py --model DIR --rows 8 32 --tokens 32
"""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import torch

from distill_lab.config import Dtype, ModelConfig, SamplingConfig
from distill_lab.device import best_device, device_name
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.types import Prompt

TOPICS = "river stone cloud tiger kitchen lamp train moon".split()


def prompts(number: int) -> list[Prompt]:
    """Questions of unlike length."""
    texts = [
        f"Write a story number {place} about a {TOPICS[place % len(TOPICS)]}. " + "Explain it well. " * (place % 5)
        for place in range(number)
    ]
    return [Prompt(f"{place:03}", [{"role": "user", "content": text}]) for place, text in enumerate(texts)]


@torch.inference_mode()
def choices(model: Any, ids: list[list[int]], num_last: int) -> torch.Tensor:
    """The likeliest token at each of the last `num_last` places of every text."""
    rows = [model(torch.tensor([text]), logits_to_keep=num_last + 1).logits[0, :-1].argmax(1).cpu() for text in ids]
    return torch.stack(rows)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    print(f"{device_name(best_device())}; {arguments.model}")
    texts: list[list[int]] = []
    expected: torch.Tensor | None = None
    for dtype in arguments.dtypes:
        name: Dtype = dtype
        model, tokenizer = load_model(ModelConfig(model=arguments.model, dtype=name))
        engine = TransformersEngine(model, tokenizer)
        sampling = SamplingConfig(max_new_tokens=arguments.tokens)
        list(engine.generate(prompts(1), SamplingConfig(max_new_tokens=2)))
        for rows in arguments.rows:
            clock, processor = time.perf_counter(), time.process_time()
            answers = list(engine.generate(prompts(rows), sampling, min_new_tokens=arguments.tokens))
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            tokens = sum(answer.num_tokens for answer in answers)
            print(
                f"{dtype}: {rows} prompts, {tokens} tokens: {tokens / clock:.1f} tokens/s, {tokens / processor:.1f} by "
                "processor time",
                flush=True,
            )
            if not texts:
                given = {prompt.id: prompt for prompt in prompts(rows)}
                for answer in answers:
                    ids, _, _ = engine.io.request(given[answer.id], sampling, context=10**6)
                    texts.append([*ids, *tokenizer(answer.content)["input_ids"]])
        shortest = min(arguments.tokens, *(len(text) // 2 for text in texts))
        found = choices(model, texts, shortest)
        if expected is None:
            expected = found
        else:
            print(f"{dtype}: {(found == expected).float().mean():.1%} of {found.numel()} tokens are those of the first")
        del engine, model
        gc.collect()


if __name__ == "__main__":
    main()
