"""One contender of `benchmarks.sft` in a process of its own, so that time and peak memory are its own.

    python -m benchmarks.sft_child SPEC.json RESULT.json

SPEC: {"contender": "lab" | "trl" | "transformers" | "gemm", "settings", "mode", "model", "rows", "tokenized", "steps",
"bf16", "work", "shapes"}. RESULT: {"seconds": one per timed step, "losses": one per step, "peak_bytes"}.

Every contender is a `transformers.Trainer` that sees the same rows in every step and logs each. The first step warms up; a
step's time runs from one log line to the next: data, forward, backward, clipping, optimizer, all of it. After the last step
the process ends without saving anything. The peak is the whole process's, weights' loading included.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "report_to": "none",
}
"""The same for all; the optimizer is transformers' default, AdamW."""
LORA_RANK, LORA_ALPHA = 16, 32


class Clock:
    """Takes the time and the loss of every step, and ends the training after the last one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.times: list[float] = []
        self.losses: list[float] = []

    def __call__(self, logs: dict[str, Any]) -> None:
        """A log line; those without a loss are passed over."""
        if "loss" not in logs:
            return
        self.times.append(time.perf_counter())
        self.losses.append(float(logs["loss"]))
        if len(self.times) == self.steps:
            raise Done

    def result(self) -> dict[str, Any]:
        """What is measured."""
        seconds = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return {"seconds": seconds, "losses": self.losses, "peak_bytes": peak_bytes()}


class Done(Exception):
    """The last step is over."""


def peak_bytes() -> int:
    """Most memory of this process so far: on the GPU where there is one, resident otherwise."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def lab(spec: dict[str, Any], clock: Clock) -> None:
    """`distill_lab.train.student.train_student`, as a user calls it."""
    from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
    from distill_lab.train.plan import make_plan
    from distill_lab.train.student import train_student

    config = TrainConfig(
        learning_rate=SETTINGS["learning_rate"],
        lr_scheduler_type=SETTINGS["lr_scheduler_type"],
        max_grad_norm=SETTINGS["max_grad_norm"],
        warmup_ratio=0.0,
        weight_decay=0.0,
        logging_steps=1,
        save_steps=1_000_000,
        validation_fraction=0.0,
        max_steps=spec["steps"],
        dtype="bf16" if spec["bf16"] else "fp32",
        lora=LoraConfig(r=LORA_RANK, alpha=LORA_ALPHA) if spec["mode"] == "lora" else LoraConfig(),
        **spec["settings"],
    )
    # As many micro-batches as the rows make: a step is then all rows, as for the others.
    lengths = [len(row["input_ids"]) - 1 for row in spec["tokenized"]]
    micro_batches = make_plan(lengths, config.model_copy(update={"max_steps": -1})).batches_per_epoch
    config = config.model_copy(update={"gradient_accumulation_steps": micro_batches})
    train_student(
        ModelConfig(model=spec["model"]), Path(spec["rows"]), Path(spec["work"]) / "student", config, on_log=clock
    )


def trl(spec: dict[str, Any], clock: Clock) -> None:
    """TRL's SFTTrainer on rows that are tokenized already, so that it trains the very same tokens."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.sft_trainer import SFTTrainer  # pyright: ignore[reportMissingImports]

    settings = {"per_device_train_batch_size": len(spec["tokenized"]), **spec["settings"]}
    trainer = SFTTrainer(
        model=spec["model"],
        args=SFTConfig(**_arguments(spec), **settings),
        train_dataset=Dataset.from_list(_labelled(spec)),
        processing_class=_tokenizer(spec),
        peft_config=_adapters() if spec["mode"] == "lora" else None,
        callbacks=[_callback(clock)],
    )
    trainer.train()


def transformers(spec: dict[str, Any], clock: Clock) -> None:
    """`transformers.Trainer` with a padded batch and the prompt masked."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype="float32")
    if spec["mode"] == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, _adapters())
    settings = {"per_device_train_batch_size": len(spec["tokenized"]), **spec["settings"]}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**_arguments(spec), **settings),
        train_dataset=Dataset.from_list(_labelled(spec)),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForSeq2Seq(_tokenizer(spec)),
        callbacks=[_callback(clock)],
    )
    trainer.train()


def gemm(spec: dict[str, Any], clock: Clock) -> None:
    """The bare matrix multiplications of a step (`benchmarks.gemm`), told as if they were one."""
    import torch

    from benchmarks.gemm import Shapes, step_seconds

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if spec["bf16"] else torch.float32
    rank = LORA_RANK if spec["mode"] == "lora" else 0
    shapes = Shapes(**spec["shapes"], lora_rank=rank)
    clock.times = [0.0]
    for seconds in step_seconds(shapes, steps=spec["steps"] - 1, device=device, dtype=dtype):
        clock.times.append(clock.times[-1] + seconds)


CONTENDERS = {"lab": lab, "trl": trl, "transformers": transformers, "gemm": gemm}


def _arguments(spec: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(Path(spec["work"]) / "out"),
        "max_steps": spec["steps"],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": spec["bf16"],
        **SETTINGS,
    }


def _labelled(spec: dict[str, Any]) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": row["input_ids"],
            "labels": [
                token if trained else -100 for token, trained in zip(row["input_ids"], row["trained"], strict=True)
            ],
        }
        for row in spec["tokenized"]
    ]


def _tokenizer(spec: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec["model"])


def _adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class OnLog(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            clock(logs)

    return OnLog()


def main() -> None:
    """Run what the spec says and write the result."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    clock = Clock(spec["steps"])
    with contextlib.suppress(Done):
        CONTENDERS[spec["contender"]](spec, clock)
    Path(sys.argv[2]).write_text(json.dumps(clock.result()), encoding="utf-8")


if __name__ == "__main__":
    main()
