"""Training in fp32 and in bf16 on the same CPU: one model, the same rows and steps, a process each, in turns.

    python -m benchmarks.train_dtype --model DIR [--steps 3] [--rounds 1] [--mode full|lora] [--threads 2]

Data in: a model's directory, and questions and answers (JSONL of GSM8K). Data out: a table, and one JSON object as the last
line: seconds, processor seconds and tokens of a step, peak memory and losses of each dtype, and the ratios fp32 / bf16 as
medians over the rounds of the ratio within a round. A step runs from one log line to the next, the first one is left out.
Processor time hardly depends on what else the machine does; wall time does.

`python -m benchmarks.train_dtype --gradients ...` instead compares the gradients of one step: the cosine of the angle
between those of both dtypes, over all weights and for the worst tensor.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.sft_child import LORA_ALPHA, LORA_RANK, Clock, Done

DTYPES = ("fp32", "bf16")
MAX_LENGTH = 512
"""Longest row in tokens; GSM8K has hardly any longer one."""


class CpuClock(Clock):
    """As `Clock`, with the processor's time and the norms of the gradients beside it."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.processor: list[float] = []
        self.norms: list[float] = []

    def __call__(self, logs: dict[str, Any]) -> None:
        """A log line; those without a loss are passed over."""
        if "loss" in logs:
            self.processor.append(time.process_time())
            self.norms.append(float(logs["grad_norm"]))
            print(f"  step {len(self.processor)}: loss {logs['loss']:.4f}", file=sys.stderr, flush=True)
        super().__call__(logs)

    def result(self) -> dict[str, Any]:
        """What is measured, of every step after the first."""
        seconds = [after - before for before, after in zip(self.processor, self.processor[1:], strict=False)]
        return {**super().result(), "processor_seconds": seconds, "norms": self.norms}


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """One dtype in this process: trained for some steps, or for one whose gradients are written to `spec["gradients"]`."""
    import torch

    from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.train.plan import make_plan
    from distill_lab.train.rows import read_rows
    from distill_lab.train.student import train_student

    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    model, rows, steps = ModelConfig(model=spec["model"]), Path(spec["rows"]), spec["steps"]
    config = TrainConfig(
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        logging_steps=1,
        save_steps=1_000_000,
        validation_fraction=0.0,
        max_steps=steps,
        max_length=MAX_LENGTH,
        tokens_per_batch=spec["tokens_per_batch"],
        gradient_accumulation_steps=max(1, spec["tokens_per_step"] // spec["tokens_per_batch"]),
        dtype=spec["dtype"],
        lora=LoraConfig(r=LORA_RANK, alpha=LORA_ALPHA) if spec["mode"] == "lora" else LoraConfig(),
    )
    data = read_rows(rows, load_tokenizer(model), max_length=MAX_LENGTH, validation_fraction=0.0, seed=config.seed)
    plan = make_plan([len(row) for row in data.training], config)
    if spec["gradients"]:
        _keep_gradients(Path(spec["gradients"]))
    clock = CpuClock(steps)
    with contextlib.suppress(Done):
        train_student(model, rows, Path(spec["work"]) / "student", config, on_log=clock)
    tokens = [int(after - before) for before, after in zip(plan.tokens_until, plan.tokens_until[1:], strict=False)]
    return {**clock.result(), "tokens": tokens, "threads": torch.get_num_threads()}


def _keep_gradients(path: Path) -> None:
    """Write the gradients of the first step, before they are clipped, and end there."""
    from safetensors.torch import save_file

    from distill_lab.train.trainer import StudentTrainer

    def keep(self: StudentTrainer, model: Any) -> Any:
        save_file({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}, path)
        raise Done

    StudentTrainer._clip_grad_norm = keep


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """`child` in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        files = Path(work) / "spec.json", Path(work) / "result.json"
        files[0].write_text(json.dumps({**spec, "work": work}), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.train_dtype", "--child", *map(str, files)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if subprocess.run(command, env=environment, check=False).returncode or not files[1].is_file():
            raise SystemExit(f"{spec['dtype']}: the training failed")
        return json.loads(files[1].read_text(encoding="utf-8"))


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Figures of each dtype as medians over steps and rounds, ratios as medians over rounds."""

    def ratio(field: str) -> float:
        return round(median(median(each["fp32"][field]) / median(each["bf16"][field]) for each in rounds), 3)

    figures = {}
    for dtype in DTYPES:
        runs = [each[dtype] for each in rounds]
        pairs = [pair for each in runs for pair in zip(each["tokens"][1:], each["seconds"], strict=True)]
        figures[dtype] = {
            "seconds_per_step": round(median(seconds for _, seconds in pairs), 2),
            "processor_seconds_per_step": round(median(s for each in runs for s in each["processor_seconds"]), 2),
            "tokens_per_s": round(median(tokens / seconds for tokens, seconds in pairs), 1),
            "peak_gib": round(median(each["peak_bytes"] for each in runs) / 2**30, 2),
            "losses": [round(loss, 4) for loss in runs[0]["losses"]],
            "gradient_norms": [round(norm, 3) for norm in runs[0]["norms"]],
        }
    apart = [abs(slow / fast - 1) for slow, fast in zip(*(figures[dtype]["losses"] for dtype in DTYPES), strict=True)]
    speed = {"speed": ratio("seconds"), "processor_speed": ratio("processor_seconds")}
    return {**speed, "largest_loss_difference": round(max(apart), 5), "tokens": rounds[0]["fp32"]["tokens"], **figures}


def compare_gradients(files: dict[str, Path]) -> dict[str, Any]:
    """The cosine between the gradients of both dtypes, over all weights, and the tensor where it is smallest."""
    import torch
    from safetensors import safe_open

    sums, worst = torch.zeros(3, dtype=torch.float64), (1.0, "")
    with safe_open(files["fp32"], "pt") as exact, safe_open(files["bf16"], "pt") as rounded:
        for name in exact.keys():  # noqa: SIM118 - no mapping
            left, right = exact.get_tensor(name).flatten(), rounded.get_tensor(name).flatten()
            part = torch.stack([left @ right, left @ left, right @ right]).double()
            sums += part
            worst = min(worst, ((part[0] / (part[1] * part[2]).sqrt()).item(), name))
    whole = (sums[0] / (sums[1] * sums[2]).sqrt()).item()
    return {"cosine": round(whole, 6), "smallest_cosine": round(worst[0], 6), "of": worst[1]}


def main() -> None:
    """Measure what is asked for."""
    arguments = _parse()
    from distill_lab.device import best_device, device_name

    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        _write_rows(arguments.data, rows)
        fields = ("model", "tokens_per_step", "tokens_per_batch", "mode", "learning_rate", "threads")
        spec = {field: getattr(arguments, field) for field in fields}
        spec |= {"rows": str(rows), "steps": 1 + arguments.steps, "gradients": ""}
        machine = {"model": Path(arguments.model).name, "mode": arguments.mode, "on": device_name(best_device())}
        if arguments.gradients:
            files = {dtype: Path(scratch) / f"{dtype}.safetensors" for dtype in DTYPES}
            for dtype, file in files.items():
                run({**spec, "dtype": dtype, "steps": 1, "gradients": str(file)})
            print(json.dumps({**compare_gradients(files), **machine}))
            return
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds):
            # In turns, and each first every other time.
            order = DTYPES if number % 2 == 0 else DTYPES[::-1]
            rounds.append({dtype: run({**spec, "dtype": dtype}) for dtype in order})
            for dtype in DTYPES:
                result = rounds[-1][dtype]
                print(
                    f"round {number + 1}/{arguments.rounds}  {dtype}  {median(result['seconds']):8.2f} s/step  "
                    f"{median(result['processor_seconds']):8.2f} s of processor  {result['peak_bytes'] / 2**30:6.2f} GiB",
                    flush=True,
                )
    shared = {"tokens_per_batch": arguments.tokens_per_batch, "threads": rounds[0]["fp32"]["threads"], **machine}
    print(json.dumps({**summary(rounds), **shared}))


def _write_rows(data: Path, rows: Path) -> None:
    with rows.open("w", encoding="utf-8") as file:
        for line in data.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt, answer = ({"role": role, "content": row[field]} for role, field in _FIELDS)
            file.write(json.dumps({"prompt": [prompt], "completion": [answer]}) + "\n")


_FIELDS = (("user", "question"), ("assistant", "answer"))


def _parse() -> argparse.Namespace:
    shared = Path(os.environ.get("DISTILL_LAB_SHARED", "../shared")) / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the model")
    parser.add_argument("--data", type=Path, default=shared / "math" / "gsm8k_train.jsonl", help="GSM8K's train.jsonl")
    parser.add_argument("--mode", choices=("full", "lora"), default="full", help="what is trained (default full)")
    parser.add_argument("--tokens-per-step", type=int, default=4096, help="tokens of a step (default 4096)")
    parser.add_argument("--tokens-per-batch", type=int, default=2048, help="of a micro-batch (default 2048)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one to warm up (default 3)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of both dtypes (default 1)")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="constant (default 1e-5)")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes (default)")
    parser.add_argument("--gradients", action="store_true", help="compare the gradients of one step instead")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        source, target = map(Path, sys.argv[2:4])
        target.write_text(json.dumps(child(json.loads(source.read_text(encoding="utf-8")))), encoding="utf-8")
    else:
        main()
