"""The requirements' System 1 and System 2 as EasyDistill configs: settings with their defaults -> a config's JSON object.

system1_config(settings.teacher_model, settings.student_model, "data/train_labeled.json", settings.out_dir)
"""

from __future__ import annotations

from typing import Any

from distill_lab.config import Config

DATASET, DATASET_SYS2 = "alibaba-pai/DistilQwen_100k", "alibaba-pai/OmniThought"
INSTRUCTIONS, LABELED, COT = "data/train_instructions.json", "data/train_labeled.json", "data/omnithought_cot.json"
SYSTEM1_CONFIG, SYSTEM1_OUT = "configs/kd_black_box_qwen_0_5b.json", "./distilled-qwen2.5-0.5b"
SYSTEM2_CONFIG, SYSTEM2_OUT = "configs/kd_cot_qwen_1_5b.json", "./distilled-qwen2.5-1.5b-cot"


class System1(Config):
    """The settings of a System 1 run."""

    teacher_model: str = "Qwen/Qwen2.5-7B-Instruct"
    """Answers the instructions that have no answer yet, all of them with relabel."""
    student_model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """Is trained."""
    dataset: str = DATASET
    """Hugging Face data set id, .json/.jsonl/.parquet/.csv file, or tiny:instructions."""
    dataset_slice: str = "train[:1000]"
    """Split and slice as Hugging Face writes them."""
    num_epochs: int = 1
    """Passes over the rows."""
    learning_rate: float = 2e-5
    """Peak learning rate; the tiny family wants 4e-3."""
    relabel: bool = False
    """The teacher writes new answers; off: the data set's own are used."""
    out_dir: str = SYSTEM1_OUT
    """Where the student goes."""


class System2(Config):
    """The settings of a System 2 run."""

    student_model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """Is trained."""
    dataset: str = DATASET_SYS2
    """Hugging Face data set id, .json/.jsonl/.parquet/.csv file, or tiny:problems."""
    dataset_slice: str = "train[:2000]"
    """Split and slice as Hugging Face writes them."""
    rv_min: float = 0.6
    """Least reasoning verbosity of a trace: a share of the highest level, 9, or from above 1 on a level."""
    cd_min: float = 0.6
    """Least cognitive difficulty, in the same way."""
    num_epochs: int = 1
    """Passes over the rows."""
    learning_rate: float = 1e-5
    """Peak learning rate; the tiny family wants 4e-3."""
    out_dir: str = SYSTEM2_OUT
    """Where the student goes."""


def system1_config(
    teacher: str, student: str, labeled_path: str, out_dir: str, *, num_epochs: int = 1, learning_rate: float = 2e-5
) -> dict[str, Any]:
    """A black-box distillation from a local teacher."""
    return {
        "job_type": "kd_black_box_local",
        "dataset": {
            "instruction_path": INSTRUCTIONS,
            "labeled_path": labeled_path,
            "template": "easydistill/chat_template/chat_template_kd.jinja",
            "seed": 42,
        },
        "inference": {
            "enable_chunked_prefill": True,
            "seed": 777,
            "gpu_memory_utilization": 0.9,
            "temperature": 0.8,
            "trust_remote_code": False,  # Qwen needs none; a model whose code nobody has read must not run
            "enforce_eager": False,
            "max_model_len": 4096,
            "max_new_tokens": 512,
        },
        "models": {"teacher": teacher, "student": student},
        "training": _training(out_dir, num_epochs, max_length=512, learning_rate=learning_rate),
    }


def system2_config(
    student: str,
    cot_path: str,
    out_dir: str,
    *,
    num_epochs: int = 1,
    learning_rate: float = 1e-5,
    max_length: int = 4096,
) -> dict[str, Any]:
    """A training on reasoning traces of up to `max_length` tokens."""
    return {
        "job_type": "kd_sft",
        "dataset": {"labeled_path": cot_path, "seed": 123},
        "models": {"student": student},
        "training": _training(out_dir, num_epochs, max_length=max_length, learning_rate=learning_rate),
    }


def _training(out_dir: str, num_epochs: int, *, max_length: int, learning_rate: float) -> dict[str, Any]:
    return {
        "output_dir": out_dir,
        "num_train_epochs": num_epochs,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "save_steps": 200,
        "logging_steps": 10,
        "max_length": max_length,
        "learning_rate": learning_rate,
        "weight_decay": 0.05,
        "warmup_ratio": 0.1,
        "lr_scheduler_type": "cosine",
        "bf16": False,
        "fp16": True,
    }
