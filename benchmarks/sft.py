"""The lab's training beside TRL's SFTTrainer and plain transformers: the same rows, tokens, precision and optimizer.

    pip install trl==1.16.0 peft
    python -m benchmarks.sft --data gsm8k.jsonl --tokenizer qwen2.5 [--mode full|lora|both] [--scale full|mid|small]

Data in: questions and answers (JSONL of GSM8K) and a Qwen2.5 tokenizer; the student is a Qwen2.5-0.5B of random
weights, built in a scratch directory. Data out: a table, and one JSON object as the last line. How it is measured stands
in `benchmarks.sft_child`; what came out, and what the ratios mean, in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scripts.random_qwen import QWEN25_VOCABULARY, build

SCALES = {"full": (896, 24), "mid": (896, 4), "small": (128, 4)}
"""Hidden size and layers; the vocabulary is always whole, since the head decides much."""
TRL = "1.16.0"
NO_CHECKPOINTING = {"gradient_checkpointing": False}
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_checkpointing": NO_CHECKPOINTING,
    "padding_free": {**NO_CHECKPOINTING, "padding_free": True, "max_length": None},
    "one_row": {**NO_CHECKPOINTING, "per_device_train_batch_size": 1, "gradient_accumulation_steps": "all"},
    "two_rows": {**NO_CHECKPOINTING, "per_device_train_batch_size": 2, "gradient_accumulation_steps": "half"},
}
"""What TRL is tried with; the fastest that was run is its best. "all", "half": as many micro-batches as make all rows."""
LOSS_TOLERANCE = 1e-3
"""Largest difference of the first step's loss between contenders in fp32; bf16 gets 30 times that."""


@dataclass(frozen=True)
class Setup:
    """What all contenders share in one round."""

    mode: str
    model: Path
    rows: Path
    tokenized: list[dict[str, Any]]
    shapes: dict[str, int]
    steps: int
    bf16: bool
    scratch: Path


def run(setup: Setup, contender: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One contender in a process of its own. Raises SystemExit with the end of its output where it fails."""
    counts = {"all": len(setup.tokenized), "half": len(setup.tokenized) // 2}
    with tempfile.TemporaryDirectory(dir=setup.scratch) as work:
        spec = {
            "contender": contender,
            "settings": {
                key: counts.get(value, value) if key.startswith("gradient_acc") else value
                for key, value in settings.items()
            },
            "mode": setup.mode,
            "model": str(setup.model),
            "rows": str(setup.rows),
            "tokenized": setup.tokenized,
            "shapes": setup.shapes,
            "steps": setup.steps,
            "bf16": setup.bf16,
            "work": work,
        }
        files = Path(work) / "spec.json", Path(work) / "result.json"
        files[0].write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.sft_child", *map(str, files)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode or not files[1].is_file():
            raise SystemExit(f"{contender} {settings} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads(files[1].read_text(encoding="utf-8"))


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[Path, list[Path]]:
    """The model, and per round a file of training rows in the lab's own form."""
    hidden, layers = SCALES[arguments.scale]
    model = scratch / f"qwen-{hidden}-{layers}"
    if not (model / "config.json").is_file():
        build(arguments.tokenizer, model, hidden=hidden, layers=layers)
    lines = arguments.data.read_text(encoding="utf-8").splitlines()
    wanted = arguments.rounds * arguments.rows
    if len(lines) < wanted:
        raise SystemExit(f"{arguments.data}: {len(lines)} rows, {wanted} are needed; lower --rounds or --rows")
    files = []
    for number in range(arguments.rounds):
        path = scratch / f"rows-{number}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for line in lines[number * arguments.rows : (number + 1) * arguments.rows]:
                row = json.loads(line)
                prompt, completion = _message("user", row["question"]), _message("assistant", row["answer"])
                file.write(json.dumps({"prompt": [prompt], "completion": [completion]}) + "\n")
        files.append(path)
    return model, files


def tokenized(rows: Path, model: Path) -> list[dict[str, Any]]:
    """Token ids and trained flags of the rows, as the lab encodes them, for the contenders that get tokens."""
    from transformers import AutoTokenizer

    from distill_lab.chat import encode
    from distill_lab.files.jsonl import read_jsonl

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = [encode(tokenizer, row["prompt"], row["completion"]) for row in read_jsonl(rows)]
    return [{"input_ids": each.input_ids, "trained": each.loss_mask} for each in encoded]


def compare(mode: str, arguments: argparse.Namespace, model: Path, files: list[Path], scratch: Path) -> dict[str, Any]:
    """All rounds of one mode: ratios, and the figures they come from."""
    contenders = {
        "lab": ("lab", {"tokens_per_batch": arguments.lab_tokens, "compile": arguments.lab_compile}),
        **{f"trl:{name}": ("trl", TRL_SETTINGS[name]) for name in arguments.trl},
        "transformers": ("transformers", {}),
        "gemm": ("gemm", {}),
    }
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    rounds: list[dict[str, Any]] = []
    tokens: list[int] = []
    for number, path in enumerate(files):
        rows = tokenized(path, model)
        trained = sum(sum(row["trained"]) for row in rows)
        tokens.append(sum(len(row["input_ids"]) - 1 for row in rows))
        shapes = {
            "hidden": config["hidden_size"],
            "intermediate": config["intermediate_size"],
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "kv_heads": config["num_key_value_heads"],
            "vocabulary": QWEN25_VOCABULARY,
            "tokens": tokens[-1],
            "trained": trained,
        }
        setup = Setup(mode, model, path, rows, shapes, 1 + arguments.steps, arguments.bf16, scratch)
        rounds.append({})
        for name, (contender, settings) in contenders.items():
            if name in arguments.skip:
                continue
            result = rounds[-1][name] = run(setup, contender, settings)
            first = f"  first loss {result['losses'][0]:.4f}" if result["losses"] else ""
            print(
                f"{mode} round {number + 1}/{len(files)}  {name:22s} {median(result['seconds']):8.2f} s/step  "
                f"{result['peak_bytes'] / 2**30:6.2f} GiB{first}",
                flush=True,
            )
        losses = {name: result["losses"][0] for name, result in rounds[-1].items() if result["losses"]}
        tolerance = LOSS_TOLERANCE * (30 if arguments.bf16 else 1)
        if max(losses.values()) - min(losses.values()) > tolerance:
            raise SystemExit(f"the contenders do not train the same: losses of the first step {losses}")
    return summary(rounds, tokens)


def summary(rounds: list[dict[str, Any]], tokens: list[int]) -> dict[str, Any]:
    """Ratios are medians over the rounds of the ratio within a round, figures medians over the rounds."""
    names = list(rounds[0])

    def step(round_: dict[str, Any], name: str) -> float:
        return median(round_[name]["seconds"])

    def times(name: str, other: str) -> float:
        """How many times as long a step of `name` takes as one of `other`."""
        return round(median(step(each, name) / step(each, other) for each in rounds), 3)

    def memory(name: str) -> float:
        return round(median(each["lab"]["peak_bytes"] / each[name]["peak_bytes"] for each in rounds), 3)

    figures = {
        name: {
            "seconds_per_step": round(median(step(each, name) for each in rounds), 3),
            "tokens_per_s": round(
                median(count / step(each, name) for each, count in zip(rounds, tokens, strict=True)), 1
            ),
            "time_of_lab": times(name, "lab"),
            "peak_bytes": int(median(each[name]["peak_bytes"] for each in rounds)),
            "all_seconds": [[round(value, 3) for value in each[name]["seconds"]] for each in rounds],
            "first_losses": [each[name]["losses"][0] for each in rounds if each[name]["losses"]],
        }
        for name in names
    }
    result: dict[str, Any] = {}
    tried = [name for name in names if name.startswith("trl:")]
    if tried:
        best = min(tried, key=lambda name: figures[name]["seconds_per_step"])
        leanest = min(tried, key=lambda name: figures[name]["peak_bytes"])
        result |= {"speed_vs_trl": times(best, "lab"), "memory_vs_trl": memory(best), "trl_best": best}
        result |= {"memory_vs_trl_leanest": memory(leanest), "trl_leanest": leanest}
    if "trl:default" in names:
        result |= {"speed_vs_trl_default": times("trl:default", "lab"), "memory_vs_trl_default": memory("trl:default")}
    if "gemm" in names:
        result["time_vs_gemm"] = times("lab", "gemm")
    if "transformers" in names:
        result |= {
            "speed_vs_transformers": times("transformers", "lab"),
            "memory_vs_transformers": memory("transformers"),
        }
    return {**result, "tokens_per_step": tokens, "figures": figures}


def table(mode: str, result: dict[str, Any]) -> str:
    """The figures for people, one line per contender."""
    lines = [f"{mode}: {'contender':22s} {'s/step':>8s} {'tokens/s':>9s} {'peak GiB':>9s} {'time of lab':>12s}"]
    for name, row in result["figures"].items():
        seconds, peak, ratio = row["seconds_per_step"], row["peak_bytes"] / 2**30, row["time_of_lab"]
        lines.append(
            f"{'':{len(mode)}s}  {name:22s} {seconds:8.2f} {row['tokens_per_s']:9.1f} {peak:9.2f} {ratio:11.2f}x"
        )
    return "\n".join(lines)


def machine(bf16: bool) -> dict[str, Any]:
    """What it ran on, and with which versions."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")
    }
    threads = torch.get_num_threads()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": "bf16" if bf16 else "fp32",
        **versions,
    }


def main() -> None:
    """Measure what is asked for."""
    arguments = _parse()
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"TRL is not installed: pip install trl=={TRL}") from None
    if found != TRL:
        raise SystemExit(f"TRL {found} is installed; the figures are for {TRL}: pip install trl=={TRL}")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        model, files = prepare(arguments, scratch)
        for mode in ("full", "lora") if arguments.mode == "both" else (arguments.mode,):
            results[mode] = compare(mode, arguments, model, files, scratch)
    for mode, result in results.items():
        print(f"\n{table(mode, result)}")
    shared = {"scale": arguments.scale, "rows_per_step": arguments.rows, "machine": machine(arguments.bf16)}
    lora = {"lora": results["lora"]} if "lora" in results else {}
    print(json.dumps({**results.get("full", {}), **lora, **shared}))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _parse() -> argparse.Namespace:
    import torch

    shared = Path(os.environ.get("DISTILL_LAB_SHARED", "../shared")) / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mode", choices=("full", "lora", "both"), default="both", help="what is trained (default both)"
    )
    parser.add_argument("--data", type=Path, default=shared / "math" / "gsm8k_train.jsonl", help="GSM8K's train.jsonl")
    parser.add_argument(
        "--tokenizer", type=Path, default=shared / "tokenizers" / "qwen2.5", help="directory of a Qwen2.5 tokenizer"
    )
    parser.add_argument(
        "--scale", choices=SCALES, default="full", help="hidden size and layers (default Qwen2.5-0.5B's)"
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds, each on other rows (default 4)")
    parser.add_argument("--rows", type=int, default=8, help="rows of an optimizer step (default 8)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a run, after one to warm up (default 2)")
    parser.add_argument(
        "--trl", nargs="*", choices=TRL_SETTINGS, default=["default", "one_row"], help="TRL's settings to try"
    )
    parser.add_argument("--lab-tokens", type=int, default=512, help="tokens of the lab's micro-batches (default 512)")
    parser.add_argument("--lab-compile", action="store_true", help="the lab with --train.compile")
    parser.add_argument(
        "--skip", nargs="*", choices=("transformers", "gemm"), default=[], help="contenders to leave out"
    )
    parser.add_argument(
        "--scratch", type=Path, help="where the model is built, and kept; default: a temporary directory"
    )
    arguments = parser.parse_args()
    for path, remedy in ((arguments.data, "--data"), (arguments.tokenizer, "--tokenizer")):
        if not path.exists():
            raise SystemExit(f"{path}: not there; give it with {remedy}, or set DISTILL_LAB_SHARED")
    # All contenders alike; what bf16 gives the lab on a CPU is measured by benchmarks.train_dtype.
    arguments.bf16 = torch.cuda.is_available()
    if arguments.bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SystemExit(
            f"{torch.cuda.get_device_name()} has no bf16: run on another GPU, or on the CPU with CUDA_VISIBLE_DEVICES="
        )
    return arguments


if __name__ == "__main__":
    main()
