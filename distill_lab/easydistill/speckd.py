"""EasyDistill 1.0's draft job, speckd_local: the teacher's answers train a draft for its speculative decoding.

    job = read_draft_job(Path("configs/speckd_local.json"), raw)

The teacher is the target, the student becomes its draft: what `distill draft` does. EasyDistill trains an EAGLE-3 head, an
extra layer on the student's own hidden states, with settings for it in `training.config_path`; the lab's draft is the whole
student, which any engine can load. DeepSpeed's schedule is read in shares of its total_num_steps, because the steps that
there are follow from the rows; how memory is split among GPUs is left to the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError

from distill_lab.config import Config, DataConfig, EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data.contamination import OVERLAPS, find_overlaps
from distill_lab.easydistill.config import Job, NumTokens, Text, located, model_name, problem
from distill_lab.easydistill.training import Training
from distill_lab.errors import NoData, UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.pipeline.draft_stages import measured
from distill_lab.pipeline.fitting import base_model_config, trained_model_config
from distill_lab.pipeline.stages import Pipeline
from distill_lab.recipes import draft
from distill_lab.training_data.prompt_distillation import write_asked
from distill_lab.types import Fields, JsonObject, Message

SCHEDULES = {"WarmupDecayLR": "linear", "WarmupLR": "constant_with_warmup"}
"""DeepSpeed's schedules, and transformers' that do the same."""
BETAS = (0.9, 0.999)
"""Of the lab's AdamW."""
NUM_TIMED = 16
"""Test prompts whose wall time is taken with and without the draft."""

Told = JsonObject | None
"""Settings that the lab chooses itself."""


class DraftData(Config):
    """`dataset`."""

    instruction_path: Text
    """Instructions for the teacher."""
    labeled_path: Text
    """The answers, as conversations in ChatML; those that are there are kept."""
    labeled_path_raw: str = ""
    labeled_progress_dir: str = ""


class VllmConfig(Config):
    """`inference.vllm_config`."""

    trust_remote_code: bool = False
    tensor_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None


class DraftSampling(Config):
    """`inference.sampling_config`."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: NumTokens = 2048


class DraftInference(Config):
    """`inference`."""

    batch_size: int | None = None
    vllm_config: VllmConfig = VllmConfig()
    sampling_config: DraftSampling = DraftSampling()


class OptimizerParams(Config):
    """`optimizer.params`; the learning rate is the schedule's if there is one."""

    lr: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_w_mode: Literal[True] = True
    betas: tuple[float, float] = BETAS


class Optimizer(Config):
    """`optimizer`."""

    type: Literal["AdamW", "Adam"] = "AdamW"
    params: OptimizerParams = OptimizerParams()


class ScheduleParams(Config):
    """`scheduler.params`."""

    warmup_min_lr: Annotated[float, Field(ge=0, le=0)] = 0.0
    warmup_max_lr: Annotated[float, Field(gt=0)]
    warmup_num_steps: Annotated[int, Field(ge=0)] = 0
    total_num_steps: Annotated[int, Field(ge=1)] | None = None


class Schedule(Config):
    """`scheduler`."""

    type: Literal["WarmupDecayLR", "WarmupLR"]
    params: ScheduleParams


class DeepSpeed(Config):
    """`training.deepspeed_config`."""

    optimizer: Optimizer = Optimizer()
    scheduler: Schedule | None = None
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    gradient_clipping: Annotated[float, Field(ge=0)] = 0.0
    train_micro_batch_size_per_gpu: Annotated[int, Field(ge=1)] = 1
    fp16: Told = None
    bf16: Told = None
    zero_optimization: Told = None
    steps_per_print: int | None = None
    wall_clock_breakdown: bool | None = None


class DraftTraining(Config):
    """`training`."""

    trainpath: str = ""
    """The file of `dataset.labeled_path`."""
    testpath: Text
    """Conversations; drafts are measured on the teacher's answers to their prompts."""
    num_epochs: Annotated[int, Field(ge=1)] = 1
    max_len: Annotated[int, Field(ge=8)] = 2048
    savedir: Text
    gradient_checkpoint: bool = False
    system_prompt: str = ""
    """Precedes every conversation that is trained and tested on."""
    deepspeed_config: DeepSpeed = DeepSpeed()
    num_workers: int | None = None
    config_path: str = ""


class DraftModels(Config):
    """`models`."""

    teacher: Text
    student: Text


class DraftConfig(Config):
    """speckd_local."""

    job_type: str
    dataset: DraftData
    models: DraftModels
    inference: DraftInference = DraftInference()
    training: DraftTraining


@dataclass(frozen=True)
class DraftJob(Job):
    """A draft job as the lab's settings."""

    test: str
    """Data set of the test prompts."""
    training_system: str
    """System prompt of what is trained and tested on."""

    def labeled_row(self, messages: Sequence[Message], answer: str) -> JsonObject:
        """A row of `labeled_path`."""
        turns = [f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages]
        return {"text": f"{''.join(turns)}<|im_start|>assistant\n{answer}"}

    def recipe(self, teacher: ModelConfig, student: ModelConfig) -> draft.Config:
        """The settings of `distill draft` with these models."""
        sampling = SamplingConfig(max_new_tokens=self.sampling.max_new_tokens, thinking=False)
        return draft.Config(
            teacher=teacher, student=student, data=DataConfig(path=self.instructions or ""), engine=self.engine,
            sampling=self.sampling, test=DataConfig(path=self.test), test_sampling=sampling,
        )  # fmt: skip


def read_draft_job(path: Path, raw: Fields) -> DraftJob:
    """The job in `path`, whose JSON is `raw`. Raises UserError naming file, key and remedy."""
    try:
        config = DraftConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {problem(each)}" for each in error.errors())) from None
    data, inference, given = config.dataset, config.inference, config.training
    labeled = located(path, data.labeled_path)
    if given.trainpath and located(path, given.trainpath) != labeled:
        raise UserError(
            f"{path}: training.trainpath {given.trainpath} is another file than dataset.labeled_path {data.labeled_path}; "
            "the draft learns the answers in labeled_path, so set both alike"
        )
    teacher = ModelConfig(
        model=model_name(path, config.models.teacher), quantization="auto",
        trust_remote_code=inference.vllm_config.trust_remote_code,
    )  # fmt: skip
    sampling = SamplingConfig(
        max_new_tokens=inference.sampling_config.max_tokens, temperature=inference.sampling_config.temperature,
        top_p=inference.sampling_config.top_p, thinking=False,
    )  # fmt: skip
    return DraftJob(
        path=path,
        instructions=str(located(path, data.instruction_path)),
        labeled=labeled,
        teacher=teacher,
        engine=EngineConfig(),
        sampling=sampling,
        system_prompt="",
        api_key=SecretStr(""),
        student=ModelConfig(model=model_name(path, config.models.student)),
        out=Path(given.savedir).expanduser(),
        training=_training(path, given),
        seed=TrainConfig().seed,
        notes=tuple(_notes(config)),
        test=str(located(path, given.testpath)),
        training_system=given.system_prompt,
    )


def _training(path: Path, given: DraftTraining) -> Training:
    deepspeed = given.deepspeed_config
    optimizer, schedule = deepspeed.optimizer.params, deepspeed.scheduler
    rate = schedule.params.warmup_max_lr if schedule else optimizer.lr
    if not rate:
        raise UserError(
            f"{path}: training.deepspeed_config: no learning rate; give scheduler.params.warmup_max_lr or "
            "optimizer.params.lr"
        )
    share, steps = 0.0, 0.0
    if schedule and schedule.params.total_num_steps:
        share = min(1.0, schedule.params.warmup_num_steps / schedule.params.total_num_steps)
    elif schedule:
        steps = float(schedule.params.warmup_num_steps)
    return Training(
        output_dir=given.savedir,
        num_train_epochs=given.num_epochs,
        per_device_train_batch_size=deepspeed.train_micro_batch_size_per_gpu,
        gradient_accumulation_steps=deepspeed.gradient_accumulation_steps,
        max_length=given.max_len,
        learning_rate=rate,
        lr_scheduler_type=SCHEDULES[schedule.type] if schedule else "constant",
        weight_decay=optimizer.weight_decay,
        max_grad_norm=deepspeed.gradient_clipping,
        gradient_checkpointing=given.gradient_checkpoint,
        warmup_ratio=share,
        warmup_steps=steps,
    )


def _notes(config: DraftConfig) -> list[str]:
    data, inference, given = config.dataset, config.inference, config.training
    deepspeed = given.deepspeed_config
    sections: list[tuple[str, Config, tuple[str, ...]]] = [
        ("dataset", data, ("labeled_progress_dir",)),
        ("inference", inference, ("batch_size",)),
        ("inference.vllm_config", inference.vllm_config, tuple(VllmConfig.model_fields)[1:]),
        ("training", given, ("num_workers",)),
        (
            "training.deepspeed_config",
            deepspeed,
            ("fp16", "bf16", "zero_optimization", "steps_per_print", "wall_clock_breakdown"),
        ),
    ]
    left = [
        f"{section}.{name}"
        for section, part, names in sections
        for name in names
        if getattr(part, name) not in (None, "")
    ]
    notes = [f"ignored, because the lab chooses these itself for this machine: {', '.join(left)}"] if left else []
    if data.labeled_path_raw:
        notes.append(f"dataset.labeled_path_raw is not written: the answers are in {data.labeled_path}")
    if given.config_path:
        notes.append(
            f"training.config_path {given.config_path} is not used: it describes EasyDistill's EAGLE head; here the student "
            "itself becomes the draft"
        )
    if deepspeed.optimizer.params.betas != BETAS:
        notes.append(f"training.deepspeed_config.optimizer.params.betas are not used: the lab's AdamW has {BETAS}")
    if deepspeed.scheduler and deepspeed.scheduler.params.total_num_steps:
        notes.append(
            "training.deepspeed_config.scheduler: the warmup is the same share of the steps that there are as "
            f"{deepspeed.scheduler.params.warmup_num_steps:,} of {deepspeed.scheduler.params.total_num_steps:,}"
        )
    return notes


def check_draft(job: DraftJob) -> None:
    """Refuse, before anything is written, a teacher on a server or with another tokenizer. Raises UserError."""
    from distill_lab.train.teachers import check_teacher

    assert job.teacher is not None, "a draft job has a target"
    check_teacher("forward_kl", job.teacher, job.student)


def test_prompts(pipeline: Pipeline, job: DraftJob, prompts: Path) -> Path:
    """The prompts that drafts are measured on. Raises NoData if there are none; a note tells of those that are trained."""
    test = pipeline.prompts("test", DataConfig(path=job.test)).path
    if not test.stat().st_size:
        raise NoData(f"{job.test}: no test prompts; a draft is judged on the teacher's answers to them")

    def find(path: Path) -> None:
        find_overlaps(prompts, test, path)

    inputs = {"0": prompts, "1": test}
    found = pipeline.run.stage("overlap with the test", OVERLAPS, inputs=inputs, work=find).path
    if trained := len({row["test_id"] for row in read_jsonl(found)}):
        number = sum(1 for _ in read_jsonl(test))
        pipeline.watch.note(
            f"{trained} of {number} test prompts overlap with prompts that are trained: the draft's rates on them say "
            "little about others"
        )
    return with_system_prompt(pipeline, job, "test with the system prompt", test)


def with_system_prompt(pipeline: Pipeline, job: DraftJob, name: str, prompts: Path) -> Path:
    """The prompts with the system prompt that precedes every conversation."""
    if not job.training_system:
        return prompts
    output = f"{name.replace(' ', '_')}.jsonl"
    return pipeline.step(name, output, write_asked, prompts, system=job.training_system, labels=()).path


def trained_draft(
    pipeline: Pipeline,
    job: DraftJob,
    teacher: ModelConfig,
    student: ModelConfig,
    rows: Path,
    train: TrainConfig,
    thinking: bool | None,
) -> tuple[Path, TrainConfig]:
    """Training set -> the draft, and its settings: forward KL from draws of the teacher's distribution."""
    settings = {"objective": "forward_kl", "teacher": pipeline.resolve(teacher)}
    train = TrainConfig.model_validate(train.model_dump() | settings | {"teacher_cache": {"mode": "sampled"}})
    out = str(job.out.absolute())
    pipeline.teacher_cache(student, rows, train, student=out, thinking=thinking)
    return pipeline.student(student, rows, train, output=out, thinking=thinking), train


def tell_rates(
    pipeline: Pipeline, config: draft.Config, student: ModelConfig, train: TrainConfig, out: Path, test: Path
) -> None:
    """Measure the draft in `out` and tell what it is worth: draft.json."""
    drafts = {
        "base": base_model_config(config.student, student, train),
        "draft": trained_model_config(out, student, train),
    }
    report = measured(pipeline, config, drafts, test, num_timed=NUM_TIMED)
    for line in (report.sentence(), *report.lines()):
        pipeline.watch.note(line)
