"""The memory estimator against measured peaks: a child process per case, estimate, measured, ratio.

    python -m benchmarks.memory                                 random weights of Qwen2.5-0.5B's widths, 6 layers
    python -m benchmarks.memory --model DIR --layers 0          a real model, whole
    python -m benchmarks.memory --case lora/checkpointing/1024  one case

A case is METHOD[/checkpointing][/bf16]/TOKENS with METHOD full or lora, or generate/ROWS. The peak is that of two training
steps, or of the answers, after loading (VmHWM, set back by /proc/self/clear_refs; on a GPU max_memory_allocated), minus
what the process held before the model. Python's and torch's share is in neither figure. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.random_qwen import build

CASES = (
    "full/1024",
    "full/2048",
    "full/checkpointing/2048",
    "full/bf16/2048",
    "lora/1024",
    "lora/2048",
    "lora/checkpointing/2048",
    "generate/8",
)
ROW_TOKENS = 256
PROMPT_TOKENS, NEW_TOKENS = 512, 32


def _resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} in /proc/self/status")


class _Peak:
    """The most memory held since `reset`, on the GPU where there is one."""

    def __init__(self) -> None:
        import torch

        self.gpu = torch.cuda.is_available()
        self.base = torch.cuda.memory_allocated() if self.gpu else _resident("VmRSS")

    def reset(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def bytes(self) -> int:
        import torch

        return (torch.cuda.max_memory_allocated() if self.gpu else _resident("VmHWM")) - self.base


class _Done(Exception):
    """The last step is over."""


def _warm_up(*, lora: bool, compute: Any) -> None:
    """Train the tiny student for a step and let it answer: what is imported and set up only once belongs to no model."""
    from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
    from distill_lab.device import free_memory
    from distill_lab.files.jsonl import write_jsonl
    from distill_lab.generation.engines.transformers import load
    from distill_lab.train.student import train_student
    from distill_lab.types import Prompt

    student = ModelConfig(model="tiny:student")
    messages: Any = [{"role": "user", "content": "Say yes."}]
    row = {"prompt": messages, "completion": [{"role": "assistant", "content": "Yes."}]}
    train = TrainConfig(max_steps=1, validation_fraction=0, dtype=compute, lora=LoraConfig(r=4 * lora))
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "rows.jsonl", [row] * 4)
        train_student(student, Path(folder) / "rows.jsonl", Path(folder) / "out", train)
    list(load(student, EngineConfig()).generate([Prompt("0", messages)], SamplingConfig(max_new_tokens=2)))
    free_memory()


def child(case: str, model: str) -> dict[str, Any]:
    """Run one case; returns the estimate and the peak, in bytes."""
    import numpy as np
    import torch

    from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
    from distill_lab.device import best_device
    from distill_lab.models.precision import compute_dtype
    from distill_lab.planning.memory_estimate import generation_memory, training_memory
    from distill_lab.planning.model_shape import shape_of
    from distill_lab.train.packing import Row
    from distill_lab.train.rows import Rows
    from distill_lab.train.student import load_student, train_model

    words = case.split("/")
    config, number = ModelConfig(model=model), int(words[-1])
    shape = shape_of(config)
    device = best_device()
    names: dict[Any, Any] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    compute: Any = "bf16" if "bf16" in words else names[compute_dtype(device)]
    _warm_up(lora=words[0] == "lora", compute=compute)
    peak = _Peak()
    if words[0] == "generate":
        from distill_lab.chat import prompt_ids
        from distill_lab.config import EngineConfig, SamplingConfig
        from distill_lab.generation.engines.transformers import load
        from distill_lab.types import Prompt

        engine = load(config, EngineConfig(batch_size=number))
        compute = names[engine.model.dtype]
        text = " ".join(f"w{index}" for index in range(PROMPT_TOKENS // 3))
        prompts = [Prompt(str(index), [{"role": "user", "content": f"{index} {text}"}]) for index in range(number)]
        peak.reset()
        sampling = SamplingConfig(max_new_tokens=NEW_TOKENS)
        list(engine.generate(prompts, sampling, min_new_tokens=NEW_TOKENS))
        length = len(prompt_ids(engine.tokenizer, prompts[0].messages))
        need = generation_memory(
            shape, compute=compute, rows=number, prompt_tokens=length, new_tokens=NEW_TOKENS, sampled=False,
            cpu=device.type == "cpu",
        )  # fmt: skip
        return {"estimate": need.total, "measured": peak.bytes(), "parts": need.parts}
    train = TrainConfig(
        max_steps=2,
        logging_steps=1,
        save_steps=1000,
        validation_fraction=0,
        tokens_per_batch=number,
        max_length=ROW_TOKENS,
        gradient_accumulation_steps=2,  # so that gradients are there while the second micro-batch is computed
        gradient_checkpointing="checkpointing" in words,
        dtype=compute,
        lora=LoraConfig(r=16 if words[0] == "lora" else 0),
    )
    loaded, tokenizer = load_student(config, train)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(6 * number // ROW_TOKENS):
        ids = random.integers(0, shape.vocabulary, ROW_TOKENS + 1)
        rows.append(Row(ids[:-1].astype(np.int32), ids[1:].astype(np.int32), np.arange(ROW_TOKENS) >= ROW_TOKENS // 4))
    data = Rows(rows, [], len(rows), 0, {})

    def on_log(row: dict[str, Any]) -> None:
        if row.get("step") == 2 and "loss" in row:
            raise _Done

    peak.reset()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Done):
        train_model(loaded, tokenizer, data, Path(folder) / "out", train, key="memory", on_log=on_log)
    need = training_memory(shape, train, tokens=number, compute=compute, gpu=device.type == "cuda")
    return {"estimate": need.total, "measured": peak.bytes(), "parts": need.parts}


def main() -> None:
    """Run the cases, one child at a time, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="directory of a model; without one, random weights are made")
    parser.add_argument("--tokenizer", type=Path, default=Path("../shared/data/tokenizers/qwen2.5"))
    parser.add_argument("--hidden", type=int, default=896, help="hidden size of the random weights")
    parser.add_argument("--layers", type=int, default=6, help="layers of the random weights")
    parser.add_argument("--case", action="append", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.model)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if not model:
            model = str(Path(folder) / "random-qwen")
            build(arguments.tokenizer, Path(model), hidden=arguments.hidden, layers=arguments.layers)
        print(f"{'case':32}{'estimate':>12}{'measured':>12}{'ratio':>8}")
        for case in arguments.case or CASES:
            command = [sys.executable, "-m", "benchmarks.memory", "--child", case, "--model", model]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
            results[case] = row = json.loads(done.stdout.splitlines()[-1])
            row["ratio"] = row["estimate"] / row["measured"]
            sizes = f"{row['estimate'] / 1e9:9.2f} GB{row['measured'] / 1e9:9.2f} GB"
            print(f"{case:32}{sizes}{row['ratio']:8.2f}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
