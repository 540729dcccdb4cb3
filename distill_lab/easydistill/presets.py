"""System 1 and System 2 of the requirements as EasyDistill configs: settings with defaults -> a config's JSON object.

system1_config(settings.teacher_model, settings.student_model, "data/train_labeled.json", settings.out_dir)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from distill_lab.config import Config, ModelConfig
from distill_lab.types import JsonObject

if TYPE_CHECKING:
    from distill_lab.planning.machine import Machine

DATASET, DATASET_SYS2 = "alibaba-pai/DistilQwen_100k", "alibaba-pai/OmniThought"
INSTRUCTIONS, LABELED, COT = "data/train_instructions.json", "data/train_labeled.json", "data/omnithought_cot.json"
SYSTEM1_CONFIG, SYSTEM1_OUT = "configs/kd_black_box_qwen_0_5b.json", "./distilled-qwen2.5-0.5b"
SYSTEM2_CONFIG, SYSTEM2_OUT = "configs/kd_cot_qwen_1_5b.json", "./distilled-qwen2.5-1.5b-cot"


Method = Literal["auto", "full", "lora", "qlora"]
HOW = {"learning_rate", "method", "lora_r"}
"""Settings for training the student."""


class System1(Config):
    """The settings of a System 1 run."""

    teacher_model: str = "Qwen/Qwen2.5-7B-Instruct"
    """The model that answers instructions without an answer; with relabel, all of them."""
    student_model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """The model to train."""
    dataset: str = DATASET
    """Hugging Face data set id, .json/.jsonl/.parquet/.csv file, or tiny:instructions."""
    dataset_slice: str = "train[:1000]"
    """Split and slice in Hugging Face syntax."""
    num_epochs: int = 1
    """Passes over the rows."""
    learning_rate: float = 2e-5
    """Peak learning rate; use 4e-3 for the tiny family."""
    method: Method = "auto"
    """full: train all weights; lora: adapters; qlora: adapters on 4-bit weights; auto: the first that fits in memory. The
    student is saved as a plain model with merged adapters, unless its 16-bit weights do not fit the machine."""
    lora_r: int = 0
    """Rank of the adapters; 0: 16 if the method uses adapters."""
    relabel: bool = False
    """Let the teacher write new answers; off: use the data set's answers."""
    out_dir: str = SYSTEM1_OUT
    """Output directory for the student."""


class System2(Config):
    """The settings of a System 2 run."""

    student_model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """The model to train."""
    dataset: str = DATASET_SYS2
    """Hugging Face data set id, .json/.jsonl/.parquet/.csv file, or tiny:problems."""
    dataset_slice: str = "train[:2000]"
    """Split and slice in Hugging Face syntax."""
    rv_min: float = 0.6
    """Minimum reasoning verbosity of a trace: a fraction of the highest level, 9, or, above 1, a level."""
    cd_min: float = 0.6
    """Minimum cognitive difficulty, in the same way."""
    num_epochs: int = 1
    """Passes over the rows."""
    learning_rate: float = 1e-5
    """Peak learning rate; use 4e-3 for the tiny family."""
    method: Method = "auto"
    """full: train all weights; lora: adapters; qlora: adapters on 4-bit weights; auto: the first that fits in memory. The
    student is saved as a plain model with merged adapters, unless its 16-bit weights do not fit the machine."""
    lora_r: int = 0
    """Rank of the adapters; 0: 16 if the method uses adapters."""
    out_dir: str = SYSTEM2_OUT
    """Output directory for the student."""


def choose_preset() -> tuple[str, str]:
    """The notebook's models that fit this machine, qwen2.5 or tiny, and why; every cell may call it again."""
    from distill_lab.errors import UserError
    from distill_lab.planning.machine import this_machine

    machine = this_machine()
    if machine.device == "cpu":
        return "tiny", "this machine has no GPU"
    try:
        check_fit(machine)
    except UserError as error:
        return "tiny", str(error)
    return "qwen2.5", f"{machine} has {machine.memory / 1e9:.0f} GB"


def check_fit(machine: Machine) -> None:
    """Raise UserError unless the default teacher and the training of both default students fit on the machine."""
    from distill_lab.easydistill.training import Training, longest_batches
    from distill_lab.planning.method import check_answering, choose_method

    first, second = System1(), System2()
    teacher = ModelConfig(model=first.teacher_model, quantization="auto")
    check_answering(teacher, machine=machine, new_tokens=512, role="teacher")
    for student, config in (
        (first.student_model, system1_config("", "", "", first.out_dir)),
        (second.student_model, system2_config("", "", second.out_dir)),
    ):
        train = longest_batches(Training.model_validate(config["training"]), seed=0)
        choose_method(ModelConfig(model=student), train, machine=machine)


def system1_config(
    teacher: str,
    student: str,
    labeled_path: str,
    out_dir: str,
    *,
    num_epochs: int = 1,
    learning_rate: float = 2e-5,
    method: Method = "auto",
    lora_r: int = 0,
) -> JsonObject:
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
            "trust_remote_code": False,  # Qwen does not need it; code that nobody has read must not run
            "enforce_eager": False,
            "max_model_len": 4096,
            "max_new_tokens": 512,
        },
        "models": {"teacher": teacher, "student": student},
        "training": _training(
            out_dir, num_epochs, max_length=512, learning_rate=learning_rate, method=method, lora_r=lora_r
        ),
    }


def system2_config(
    student: str,
    cot_path: str,
    out_dir: str,
    *,
    num_epochs: int = 1,
    learning_rate: float = 1e-5,
    max_length: int = 4096,
    method: Method = "auto",
    lora_r: int = 0,
) -> JsonObject:
    """Training on reasoning traces of up to `max_length` tokens."""
    return {
        "job_type": "kd_sft",
        "dataset": {"labeled_path": cot_path, "seed": 123},
        "models": {"student": student},
        "training": _training(
            out_dir, num_epochs, max_length=max_length, learning_rate=learning_rate, method=method, lora_r=lora_r
        ),
    }


def _training(
    out_dir: str, num_epochs: int, *, max_length: int, learning_rate: float, method: Method, lora_r: int
) -> JsonObject:
    # EasyDistill knows neither key, so include them only if they differ from the default.
    own = {"method": method} if method != "auto" else {}
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
        **own,
        **({"lora_r": lora_r} if lora_r else {}),
    }
