"""On-policy distillation: what a step costs, writing included, here, in TRL's DistillationTrainer and in its GKDTrainer.

    OMP_NUM_THREADS=1 python -m benchmarks.kd_on_policy
    OMP_NUM_THREADS=1 python -m benchmarks.kd_on_policy --teacher DIR --student DIR --rollouts 8 --rounds 2

Also part `on_policy` of `benchmarks/kd.py`. All train the same student on its answers to the same prompts, in fp32, with the
teacher beside it, reverse KL, as many rollouts to a step and as many new tokens at most;
a process each, one after the other.
Seconds are CPU seconds of the process per step, after a first round (TRL: a first step) to warm up. GKD's settings are its
own but for these: its gradient checkpointing leaves generation without a KV cache. Without TRL (`pip install trl==1.16.0`)
its columns are left out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from distill_lab.config import DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.data.records import write_prompts
from distill_lab.models.loading import load_model
from distill_lab.train.on_policy import train_on_policy
from distill_lab.train.rollouts import RolloutSettings

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """What every contender does."""

    teacher: str = "tiny:teacher"
    student: str = "tiny:student"
    rollouts: int = 64
    """To a step."""
    new_tokens: int = 48
    """At most, of a rollout."""
    steps_per_round: int = 4
    """The lab's; the others write anew for every step."""
    rounds: int = 3

    @property
    def steps(self) -> int:
        """Optimizer steps that are timed."""
        return self.rounds * self.steps_per_round

    def model(self, role: str) -> ModelConfig:
        """The teacher or the student, in fp32."""
        return ModelConfig(model=self.teacher if role == "teacher" else self.student, dtype="fp32")


def lab(task: Task, prompts: Path, out: Path) -> dict[str, float]:
    """Seconds and generated tokens per step."""
    at: list[float] = []

    def on_log(row: dict[str, Any]) -> None:
        if "loss" in row:
            at.append(time.process_time())

    config = TrainConfig(
        method="full", dtype="fp32", teacher=task.model("teacher"), objective="reverse_kl",
        max_steps=task.steps + task.steps_per_round, max_length=512, learning_rate=1e-5, tokens_per_batch=16_384,
        logging_steps=1, validation_fraction=0.01, save_steps=1e6,
    )  # fmt: skip
    sampling = SamplingConfig(max_new_tokens=task.new_tokens, temperature=1.0, thinking=False)
    settings = RolloutSettings(sampling=sampling, steps_per_round=task.steps_per_round, rollouts_per_step=task.rollouts)
    result = train_on_policy(task.model("student"), prompts, out, config, settings, on_log=on_log)
    tokens = sum(each.tokens for each in result.stats.rounds[1:]) / task.steps
    return {"s": (at[-1] - at[task.steps_per_round - 1]) / task.steps, "tokens": tokens}


def _timed(trainer: Callable[..., Any], task: Task, arguments: object, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds per step of one of TRL's trainers."""
    from datasets import Dataset
    from transformers import TrainerCallback

    at: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at.append(time.process_time())

    student, tokenizer = load_model(task.model("student"), training=True)
    teacher, _ = load_model(task.model("teacher"))
    trainer(
        model=student, teacher_model=teacher, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, callbacks=[Clock()],
    ).train()  # fmt: skip
    return {"s": (at[-1] - at[0]) / task.steps}


def _settings(task: Task, out: Path) -> dict[str, Any]:
    """What TRL's two trainers are given alike."""
    return {
        "output_dir": str(out), "max_steps": task.steps + 1, "per_device_train_batch_size": task.rollouts,
        "learning_rate": 1e-5, "beta": 1.0, "temperature": 1.0, "use_cpu": True, "bf16": False, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


def trl(task: Task, prompts: Path, out: Path) -> dict[str, float]:
    """TRL's stable trainer; raises ImportError without TRL."""
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    arguments = DistillationConfig(
        **_settings(task, out), max_completion_length=task.new_tokens, gradient_checkpointing=False,
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    return _timed(DistillationTrainer, task, arguments, [{"prompt": each.messages} for each in read_prompts(prompts)])


def gkd(task: Task, prompts: Path, out: Path) -> dict[str, float]:
    """TRL's GKD, all of whose steps are on-policy; raises ImportError without TRL."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore[reportMissingImports]

    arguments = GKDConfig(**_settings(task, out), lmbda=1.0, max_new_tokens=task.new_tokens)
    answer = [{"role": "assistant", "content": "None of it is read: every step writes anew."}]
    rows = [{"messages": [*each.messages, *answer]} for each in read_prompts(prompts)]
    return _timed(GKDTrainer, task, arguments, rows)


CONTENDERS: dict[str, Callable[[Task, Path, Path], dict[str, float]]] = {"lab": lab, "trl": trl, "gkd": gkd}


def run(name: str, task: Task) -> dict[str, float]:
    """One contender, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        write_prompts(DataConfig(path="tiny:problems", split="distill[:1024]"), prompts)
        return CONTENDERS[name](task, prompts, Path(folder) / "out")


def on_policy_part(task: Task, names: list[str]) -> dict[str, float]:
    """CPU seconds per step of each, and how many times the lab's."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        if name != "lab" and find_spec("trl") is None:
            print(f"{name}: left out, TRL is not installed")
            continue
        command = [sys.executable, "-m", "benchmarks.kd_on_policy", "--child", name]
        for option in ("teacher", "student", "rollouts", "new_tokens", "steps_per_round", "rounds"):
            command += [f"--{option.replace('_', '-')}", str(getattr(task, option))]
        child = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(child.stdout.splitlines()[-1])
        print(f"on-policy, {name}: {found[name]['s']:.3f} s a step", flush=True)
    ours = found["lab"]
    ratios = {f"on_policy_vs_{name}": each["s"] / ours["s"] for name, each in found.items() if name != "lab"}
    return {"on_policy_step_s": ours["s"], "on_policy_tokens_per_s": ours["tokens"] / ours["s"], **ratios}


def main() -> None:
    """Measure each and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=Task.teacher)
    parser.add_argument("--student", default=Task.student)
    parser.add_argument("--rollouts", type=int, default=Task.rollouts, help="to a step")
    parser.add_argument("--new-tokens", type=int, default=Task.new_tokens)
    parser.add_argument("--steps-per-round", type=int, default=Task.steps_per_round)
    parser.add_argument("--rounds", type=int, default=Task.rounds)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    child, names = given.pop("child"), given.pop("contenders")
    task = Task(**given)
    if child:
        torch.set_num_threads(1)
        print(json.dumps(run(child, task)))
    else:
        print(json.dumps({name: round(value, 4) for name, value in on_policy_part(task, names).items()}))


if __name__ == "__main__":
    main()
