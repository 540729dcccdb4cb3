"""The lab's engine beside Hugging Face `generate` and vLLM: the same prompts, model, precision (fp32) and threads, greedy.

    python -m benchmarks.generation [--model tiny:teacher] [--vllm-python PATH] [--threads 1] [--rounds 3]

Cases: `plain`, outputs of equal length; `ragged`, word problems and short instructions mixed, each ended by the model;
`prefix`, one system prompt of 2,000 tokens over short turns. `generate` is given its best batch size, found among --sizes
in a first round, with the prompts as they come (`hf`) and sorted by length beforehand (`hf_sorted`). Within a round the
contenders follow one another, every second round backwards; ratios are taken within a round and the figure is their
median. The lab's time includes templates and tokenization, the others get token ids. With one thread, time is CPU time
(on an idle machine the same as that by the clock). Data out: a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from distill_lab import chat
from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.models.names import resolve
from distill_lab.tiny.tasks import rows
from distill_lab.types import Prompt

SIZES = (8, 32, 64, 128, 256)
MAX_PREFIX_TOKENS = 140_000
"""Prompt tokens of one of `generate`'s batches: more does not fit a few GB, its cache being copied at every step."""
PREFIX_TOKENS = 2000
RATIOS = ("vs_hf", "vs_hf_sorted", "vs_vllm")


@dataclass(frozen=True)
class Case:
    """Prompts and how they are answered."""

    name: str
    prompts: list[Prompt]
    ids: list[list[int]]
    max_new_tokens: int
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Took:
    """Seconds, and the tokens generated for each prompt up to its end token."""

    seconds: float
    wall_s: float
    outputs: list[list[int]]


def cases(engine: TransformersEngine, arguments: argparse.Namespace) -> list[Case]:
    """The cases asked for."""
    number = arguments.prompts
    problems = [row["messages"][:1] for row in islice(rows("problems", "test"), number)]
    instructions = [row["messages"][:1] for row in islice(rows("instructions", "test"), number)]
    solved = islice(rows("problems", "train"), 400)
    rules = "\n".join(f"{row['messages'][0]['content']} {row['messages'][1]['content']}" for row in solved)
    ids = engine.tokenizer(rules, add_special_tokens=False)["input_ids"]
    system = {"role": "system", "content": str(engine.tokenizer.decode(ids[:PREFIX_TOKENS]))}  # pyright: ignore
    mixed = [messages for pair in zip(problems, instructions, strict=True) for messages in pair]
    made = {
        "plain": (problems, 64, 64),
        "ragged": (mixed, 400, 0),
        "prefix": ([[system, *messages] for messages in instructions[: arguments.prefix_prompts]], 24, 0),
    }
    found = []
    for name in arguments.cases:
        conversations, most, least = made[name]
        prompts = [Prompt(f"{name}-{place}", messages) for place, messages in enumerate(conversations)]
        found.append(
            Case(name, prompts, [chat.prompt_ids(engine.tokenizer, each.messages) for each in prompts], most, least)
        )
    return found


def hugging_face(engine: TransformersEngine, case: Case, *, size: int, in_order: bool) -> list[list[int]]:
    """`generate` in batches of `size`, prompts at the right; in_order: as they come, else sorted by length."""
    model: Any = engine.model
    pad = engine.tokenizer.pad_token_id
    order = list(range(len(case.ids)))
    if not in_order:
        order.sort(key=lambda place: len(case.ids[place]))
    outputs: list[list[int]] = [[] for _ in order]
    for first in range(0, len(order), size):
        places = order[first : first + size]
        longest = max(len(case.ids[place]) for place in places)
        padded = [[pad] * (longest - len(case.ids[place])) + case.ids[place] for place in places]
        mask = [[0] * (longest - len(case.ids[place])) + [1] * len(case.ids[place]) for place in places]
        made = model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=case.max_new_tokens,
            min_new_tokens=case.min_new_tokens or None,
            eos_token_id=engine.io.end_ids,
            pad_token_id=pad,
        )[:, longest:].tolist()
        for place, tokens in zip(places, made, strict=True):
            outputs[place] = until_end(tokens, engine.io.end_ids)
    return outputs


def until_end(tokens: list[int], end_ids: Sequence[int]) -> list[int]:
    """`tokens` up to and with the first end token."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in end_ids), tokens)


def timed(run: Callable[[], Any], *, cpu: bool) -> tuple[float, float, Any]:
    """Seconds (of the CPU, or by the clock), seconds by the clock, and what `run` returned."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = run()
    wall, cpu_time = time.perf_counter() - start, time.process_time() - cpu_start
    return (cpu_time if cpu else wall), wall, result


class Vllm:
    """vLLM in a process of its own, its engine started."""

    def __init__(self, python: str, model: str, *, context: int, threads: int) -> None:
        child = str(Path(__file__).with_name("vllm_child.py"))
        self._process = subprocess.Popen(
            [python, child, model, str(context), str(max(SIZES))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        self._ask(None)

    def answer(self, case: Case, end_ids: Sequence[int], *, cpu: bool) -> Took:
        """All prompts of `case`."""
        job = {"prompts": case.ids, "max_new_tokens": case.max_new_tokens, "min_new_tokens": case.min_new_tokens}
        said = self._ask({**job, "end_ids": list(end_ids)})
        return Took(said["cpu_seconds"] if cpu else said["seconds"], said["seconds"], said["outputs"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, job: dict[str, Any] | None) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        if job is not None:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with exit code {self._process.wait()}; what it said stands above")
        return json.loads(line)


def best_size(engine: TransformersEngine, case: Case, sizes: Sequence[int], *, in_order: bool, cpu: bool) -> int:
    """The batch size that `generate` is fastest with."""
    longest = max(map(len, case.ids))
    tried: list[tuple[float, int]] = []
    for size in (size for size in sizes if size * longest <= MAX_PREFIX_TOKENS and size < 2 * len(case.ids)):
        seconds, _, _ = timed(partial(hugging_face, engine, case, size=size, in_order=in_order), cpu=cpu)
        order = "as they come" if in_order else "sorted"
        print(f"{case.name}: generate, batches of {size}, {order}: {seconds:.2f} s", flush=True)
        tried.append((seconds, size))
    return min(tried)[1]


def compare(engine: TransformersEngine, case: Case, vllm: Vllm | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one case."""
    cpu = arguments.threads == 1
    sampling = SamplingConfig(max_new_tokens=case.max_new_tokens)
    orders = {"hf": True, "hf_sorted": False}
    sizes = {
        name: best_size(engine, case, arguments.sizes, in_order=in_order, cpu=cpu) for name, in_order in orders.items()
    }

    def hf(name: str) -> Took:
        return Took(*timed(partial(hugging_face, engine, case, size=sizes[name], in_order=orders[name]), cpu=cpu))

    def lab() -> Took:
        seconds, wall, found = timed(
            lambda: list(engine.generate(case.prompts, sampling, min_new_tokens=case.min_new_tokens)), cpu=cpu
        )
        completions.update({completion.id: completion for completion in found})
        return Took(seconds, wall, [])

    completions: dict[str, Any] = {}
    runs: dict[str, Callable[[], Took]] = {**{name: partial(hf, name) for name in orders}, "lab": lab}
    if vllm:
        runs["vllm"] = lambda: vllm.answer(case, engine.io.end_ids, cpu=cpu)
        runs["vllm"]()  # compiles
    lab()
    rounds: list[dict[str, Took]] = []
    for number in range(arguments.rounds):
        order = list(runs)[:: -1 if number % 2 else 1]
        took = {name: runs[name]() for name in order}
        rounds.append(took)
        words = ", ".join(f"{name} {took[name].seconds:.2f} s" for name in runs)
        print(f"{case.name} round {number + 1}/{arguments.rounds}: {words}", flush=True)
    outputs = rounds[-1]["hf"].outputs
    equal = [
        completions[prompt.id] == engine.io.completion(prompt, 0, ids, tokens, completions[prompt.id].finish_reason)
        for prompt, ids, tokens in zip(case.prompts, case.ids, outputs, strict=True)
    ]
    lengths = sorted(map(len, outputs))
    result: dict[str, Any] = {
        "prompts": len(case.prompts),
        "prompt_tokens": sum(map(len, case.ids)),
        "tokens": sum(lengths),
        "output_tokens_p50_p95_max": [lengths[len(lengths) // 2], lengths[len(lengths) * 95 // 100], lengths[-1]],
        "identical": sum(equal),
        "hf_best_batch": sizes,
        "seconds": {name: round(median(each[name].seconds for each in rounds), 3) for name in runs},
        "wall_s": {name: round(median(each[name].wall_s for each in rounds), 3) for name in runs},
    }
    for name in runs:
        if name != "lab":
            ratios = [each[name].seconds / each["lab"].seconds for each in rounds]
            result[f"vs_{name}"], result[f"vs_{name}_rounds"] = round(median(ratios), 2), [round(r, 2) for r in ratios]
    return result


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny:teacher", help="model with room for some 2,200 tokens (tiny:teacher)")
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM; without it vLLM is left out")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contender (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first (default 3)")
    parser.add_argument("--prompts", type=int, default=256, help="prompts of plain, half of ragged's (default 256)")
    parser.add_argument("--prefix-prompts", type=int, default=64, help="prompts of prefix (default 64)")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="batch sizes to try for generate")
    parser.add_argument(
        "--cases", nargs="+", choices=("plain", "ragged", "prefix"), default=["plain", "ragged", "prefix"]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(ModelConfig(model=arguments.model))
    engine = TransformersEngine(model, tokenizer)
    chosen = cases(engine, arguments)
    context = max(len(ids) + case.max_new_tokens for case in chosen for ids in case.ids)
    vllm = None
    if arguments.vllm_python:
        vllm = Vllm(arguments.vllm_python, resolve(arguments.model), context=context, threads=arguments.threads)
    results = {case.name: compare(engine, case, vllm, arguments) for case in chosen}
    if vllm:
        vllm.close()
    for name, result in results.items():
        words = ", ".join(f"{key[3:]} {result[key]:.2f}x" for key in RATIOS if key in result)
        print(
            f"{name:8s} lab {result['tokens'] / result['seconds']['lab']:8.0f} tokens/s; as fast as {words}; ", end=""
        )
        print(f"{result['identical']} of {result['prompts']} completions are those of generate")
    summary: dict[str, Any] = {}
    for name, result in results.items():
        summary |= {f"{name}_{key}": result[key] for key in RATIOS if key in result}
    summary["identical"] = all(result["identical"] == result["prompts"] for result in results.values())
    print(json.dumps({**summary, "threads": arguments.threads, "torch": torch.__version__, "cases": results}))


if __name__ == "__main__":
    main()
