"""How fast two real models answer here: the lab's engine beside Hugging Face `generate`, in fp32 and bf16.

    python -m benchmarks.real_speed --teacher DIR --student DIR --data DATA --out speed.json

Resumes by model and dtype.

Answers are ragged: GSM8K problems with up to 128 tokens and one-word questions in turn, greedy. `generate` gets its best
batch size of --sizes, found beforehand with shorter answers, and the prompts sorted by length; both get the same prompts,
dtype and threads, and take turns. `single` is one prompt at a time. Figures are medians over rounds; ratios are taken within
a round.
Data out: a JSON object with a row per model and dtype, and `ratios`, the lab's speed over `generate`'s.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.generation import Case, hugging_face, timed
from distill_lab import chat
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import read_jsonl, write_json
from distill_lab.generation.engines.transformers import TransformersEngine, load
from distill_lab.models.loading import load_model
from distill_lab.types import Prompt

MODELS = ("teacher", "student")
DTYPES = ("fp32", "bf16")
MAX_NEW_TOKENS, TRIAL_TOKENS = 128, 48
"""Of an answer, and of an answer when batch sizes are tried."""
NUM_EACH, NUM_SINGLE = 16, 2
"""Prompts of either kind in a batch, and prompts of the single rounds."""
SOLVE = r"Please reason step by step, and put your final answer within \boxed{}."
NAME = "Name the language of this text in one word, without explaining it."


def ragged(engine: TransformersEngine, data: Path) -> Case:
    """Problems and one-word questions in turn."""
    from benchmarks.real_qwen import find

    problems = [f"{row['question']}\n{SOLVE}" for row in islice(read_jsonl(find(data, "gsm8k_train.jsonl")), NUM_EACH)]
    lines = find(data, "multilingual.txt").read_text(encoding="utf-8").splitlines()
    questions = [f"{NAME}\n{line}" for line in lines[:NUM_EACH]]
    texts = [text for pair in zip(problems, questions, strict=True) for text in pair]
    prompts = [Prompt(str(number), [{"role": "user", "content": text}]) for number, text in enumerate(texts)]
    ids = [chat.prompt_ids(engine.tokenizer, each.messages) for each in prompts]
    return Case("ragged", prompts, ids, MAX_NEW_TOKENS)


def lab(engine: TransformersEngine, case: Case, *, size: int) -> list[int]:
    """Tokens of each answer; size 1: one prompt at a time."""
    sampling = SamplingConfig(max_new_tokens=case.max_new_tokens)
    jobs = [[prompt] for prompt in case.prompts] if size == 1 else [case.prompts]
    return [answer.num_tokens for job in jobs for answer in engine.generate(job, sampling)]


def generate(engine: TransformersEngine, case: Case, *, size: int) -> list[int]:
    """Tokens of each answer from `generate`, prompts sorted by length."""
    return [len(tokens) for tokens in hugging_face(engine, case, size=size, in_order=False)]


def measure(model: str, dtype: str, data: Path, *, sizes: list[int], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    config = ModelConfig(model=model, dtype=dtype)  # pyright: ignore[reportArgumentType]
    engine = load(config, EngineConfig(engine="transformers"))
    # `generate` gets the model as transformers loads it; the lab's engine has packed its own.
    plain = TransformersEngine(*load_model(config))
    # Greedy is greedy for both: the model's own repetition penalty would slip into `generate` alone.
    plain.model.generation_config = GenerationConfig(
        eos_token_id=engine.io.end_ids, pad_token_id=engine.tokenizer.pad_token_id
    )
    case = ragged(engine, data)
    alone = Case("single", case.prompts[:NUM_SINGLE], case.ids[:NUM_SINGLE], case.max_new_tokens)
    trial = Case("trial", case.prompts, case.ids, TRIAL_TOKENS)
    lab(engine, alone, size=0)
    tried = {size: timed(partial(generate, plain, trial, size=size), cpu=False)[0] for size in sizes}
    best = min(tried, key=lambda size: tried[size])
    times = ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in tried.items())
    print(f"{model} {dtype}: generate is fastest with batches of {best} ({times})", flush=True)
    runs: dict[str, Callable[[], list[int]]] = {
        "lab": partial(lab, engine, case, size=0),
        "generate": partial(generate, plain, case, size=best),
        "lab_single": partial(lab, engine, alone, size=1),
        "generate_single": partial(generate, plain, alone, size=1),
    }
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, int] = {}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            seconds, _, made = timed(runs[name], cpu=False)
            tokens[name] = sum(made)
            speeds[name].append(sum(made) / seconds)
    return {
        "batch_of_generate": best,
        "tokens": tokens,
        "tokens_per_s": {name: round(median(values), 1) for name, values in speeds.items()},
        "ratio": round(median(a / b for a, b in zip(speeds["lab"], speeds["generate"], strict=True)), 2),
        "ratio_single": round(
            median(a / b for a, b in zip(speeds["lab_single"], speeds["generate_single"], strict=True)), 2
        ),
    }


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8, 16, 32], help="batch sizes to try for generate")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="whose rows to measure")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"rows": {}}
    if arguments.out.is_file():
        found = json.loads(arguments.out.read_text(encoding="utf-8"))
    for name in arguments.models:
        for dtype in arguments.dtypes:
            if f"{name} {dtype}" in found["rows"]:
                continue
            row = measure(
                getattr(arguments, name), dtype, arguments.data, sizes=arguments.sizes, rounds=arguments.rounds
            )
            found["rows"][f"{name} {dtype}"] = row
            found["threads"], found["torch"] = torch.get_num_threads(), str(torch.__version__)
            write_json(arguments.out, found)
            gc.collect()
    rows = found["rows"]
    found["ratios"] = {key: row["ratio"] for key, row in rows.items()} | {
        f"{name} bf16 over fp32": round(
            rows[f"{name} bf16"]["tokens_per_s"]["lab"] / rows[f"{name} fp32"]["tokens_per_s"]["lab"], 2
        )
        for name in MODELS
        if {f"{name} bf16", f"{name} fp32"} <= rows.keys()
    }
    write_json(arguments.out, found)
    print("| model, dtype | lab batched | generate, sorted, best batch | lab's speed | lab single | generate single |")
    print("|---|---|---|---|---|---|")
    for key, row in rows.items():
        speed = row["tokens_per_s"]
        print(
            f"| {key} | {speed['lab']} | {speed['generate']} ({row['batch_of_generate']}) | {row['ratio']}x "
            f"| {speed['lab_single']} | {speed['generate_single']} |"
        )
    print(json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
