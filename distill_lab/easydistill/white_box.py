"""EasyDistill 1.0's white-box jobs: the student learns the teacher's probabilities of each token, besides the answers.

    job = read_white_box(Path("configs/kd_white_box.json"), raw)
    train = with_probabilities(pipeline, job, student, teacher, prompts, rows, train, thinking)

kd_white_box: the teacher is here. It answers what `labeled_path` has no answer to, is captured on the answers, and its
probabilities are also written to `logits_path`. kd_white_box_train_only: they are read from `logits_path`, a file that
EasyDistill or kd_white_box wrote; kd_white_box_train_only_multi: from a file of each of several teachers, whose divergences
are added. The loss is kd_ratio * divergence + (1 - kd_ratio) * cross-entropy, both as means over the answers' tokens.

EasyDistill writes probabilities of the text that the teacher goes on with, whatever `labeled_path` says, and then lays them
over the training row from its first token on, in the trainer's own order of rows. Here a line is found by its prompt and
compared with the answer token by token (`train/given_logits.py`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from distill_lab.config import Config, DataConfig, ModelConfig, TrainConfig
from distill_lab.easydistill.config import (
    WHITE_BOX_JOBS,
    Job,
    LocalConfig,
    LocalInference,
    Models,
    NumTokens,
    TeacherData,
    Text,
    TrainOnlyConfig,
    TrainOnlyData,
    located,
    make_job,
    model_name,
    problem,
)
from distill_lab.easydistill.training import max_length
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_json
from distill_lab.generation.model_identity import model_inputs
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import fingerprint
from distill_lab.types import Fields, JsonObject

if TYPE_CHECKING:
    from distill_lab.train.packing import Row

OBJECTIVES = {"forward_kld": "forward_kl", "reverse_kld": "reverse_kl"}
"""EasyDistill's names of divergences, and the lab's."""
TOP = 10
"""Ids of each token, as in EasyDistill's own config."""


class Distillation(Config):
    """`distillation`."""

    kd_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the divergence in the loss; the rest is cross-entropy with the answer."""
    max_seq_length: NumTokens = 1024
    """Tokens of a row that are compared with the teacher; at least those that are trained."""
    distillation_type: Literal["forward_kld", "reverse_kld"] = "forward_kld"


class WhiteBoxData(TeacherData):
    """`dataset` of kd_white_box."""

    logits_path: Text
    """Where the teacher's probabilities are written."""


class GivenData(TrainOnlyData):
    """`dataset` of a white-box job that only trains."""

    instruction_path: str = ""
    """The prompts in the order of the lines in `logits_path`; empty: those of `labeled_path`."""
    logits_path: Annotated[tuple[Text, ...], Field(min_length=1)]
    """The teacher's probabilities; several files for several teachers."""

    @field_validator("logits_path", mode="before")
    @classmethod
    def _one_is_several(cls, given: object) -> object:
        return (given,) if isinstance(given, str) else given


class WhiteBoxInference(LocalInference):
    """`inference` of kd_white_box."""

    top_logits_num: Annotated[int, Field(ge=1, le=254)] = TOP
    """Most likely ids of each token that are compared; all others together are one more."""


class GivenModels(Models):
    """`models` of a white-box job that only trains: `teacher` may be a list."""

    teachers: tuple[Text, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _list_is_teachers(cls, given: object) -> object:
        if isinstance(given, dict) and isinstance(given.get("teacher"), list):
            return {**{name: value for name, value in given.items() if name != "teacher"}, "teachers": given["teacher"]}
        return given


class WhiteBoxConfig(LocalConfig):
    """kd_white_box."""

    dataset: WhiteBoxData  # pyright: ignore[reportIncompatibleVariableOverride]
    inference: WhiteBoxInference = WhiteBoxInference()  # pyright: ignore[reportIncompatibleVariableOverride]
    distillation: Distillation = Distillation()


class GivenConfig(TrainOnlyConfig):
    """kd_white_box_train_only and kd_white_box_train_only_multi."""

    dataset: GivenData  # pyright: ignore[reportIncompatibleVariableOverride]
    models: GivenModels  # pyright: ignore[reportIncompatibleVariableOverride]
    distillation: Distillation = Distillation()


@dataclass(frozen=True)
class WhiteBoxJob(Job):
    """A white-box job as the lab's settings."""

    logits: tuple[str, ...]
    """Files of probabilities: the one to write if there is a teacher, otherwise those to read."""
    order: str
    """Data set whose rows are in the order of their lines."""
    teachers: tuple[str, ...]
    """Who wrote the files, if somebody else did."""
    top: int
    distillation: Distillation


def is_white_box(raw: Fields) -> bool:
    """Whether a config is of a white-box job."""
    return raw.get("job_type") in WHITE_BOX_JOBS


def read_white_box(path: Path, raw: Fields) -> WhiteBoxJob:
    """The job in `path`, whose JSON is `raw`. Raises UserError naming file, key and remedy."""
    kind = WhiteBoxConfig if raw["job_type"] == WHITE_BOX_JOBS[0] else GivenConfig
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {problem(each)}" for each in error.errors())) from None
    given, training = config.distillation, config.training
    if not training.max_length and not training.max_seq_length:
        # The trainer's rows are then as long as those that are compared.
        training = training.model_copy(update={"max_length": given.max_seq_length})
    if given.max_seq_length < max_length(training):
        raise UserError(
            f"{path}: distillation.max_seq_length {given.max_seq_length} is less than training.max_length "
            f"{max_length(training)}: every token that is trained is compared with the teacher; set both alike"
        )
    job = make_job(path, config.model_copy(update={"training": training}))
    notes = [
        f"the loss is {given.kd_ratio:g} * divergence + {1 - given.kd_ratio:g} * cross-entropy, each a mean over tokens; "
        "EasyDistill divides its divergence by the number of tokens twice, so that it hardly counts"
    ]
    if isinstance(config, WhiteBoxConfig):
        files, teachers = (str(located(path, config.dataset.logits_path)),), ()
        order, top = config.dataset.instruction_path, config.inference.top_logits_num
    else:
        files, teachers, top = _given(path, config, notes)
        order = config.dataset.instruction_path or config.dataset.labeled_path
        if not located(path, order).exists():
            notes.append(
                f"dataset.instruction_path {order} is not here: the lines of the files are those of labeled_path"
            )
            order = config.dataset.labeled_path
    return WhiteBoxJob(
        **{**vars(job), "training": training, "notes": (*job.notes, *notes)},
        logits=files,
        order=str(located(path, order)),
        teachers=teachers,
        top=top,
        distillation=given,
    )


def _given(path: Path, config: GivenConfig, notes: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Files, teachers and the number of ids of a job that only trains."""
    models, inference = config.models, dict(config.inference)
    teachers = models.teachers or ((models.teacher,) if models.teacher else ())
    files = config.dataset.logits_path
    if teachers and len(teachers) != len(files):
        raise UserError(
            f"{path}: models.teacher names {len(teachers)} teachers and dataset.logits_path {len(files)} files; give one "
            "file for each teacher"
        )
    top = inference.pop("top_logits_num", 0)
    try:
        top = WhiteBoxInference.model_validate({"top_logits_num": top}).top_logits_num if top else 0
    except ValidationError as error:
        raise UserError(f"{path}: inference.{problem(error.errors()[0])}") from None
    if inference:
        names = ", ".join(f"inference.{name}" for name in inference)
        notes.append(f"not used, because no teacher is asked: {names}")
    return tuple(str(located(path, file)) for file in files), tuple(model_name(path, name) for name in teachers), top


def check_white_box(job: WhiteBoxJob) -> None:
    """Check what can be checked before anything is written. Raises UserError."""
    from distill_lab.train.teachers import check_teacher

    objective = OBJECTIVES[job.distillation.distillation_type]
    if job.teacher is not None:
        check_teacher(objective, job.teacher, job.student)
        return
    for file in job.logits:
        if not Path(file).is_file():
            raise UserError(f"{job.path}: dataset.logits_path: {file}: no such file; run kd_white_box to write it")
    for teacher in job.teachers:
        if _is_here(teacher):
            check_teacher(objective, ModelConfig(model=teacher), job.student)


def begin(pipeline: Pipeline, job: WhiteBoxJob) -> None:
    """Before the first stage: notes on teachers that are not here, and a refusal to replace a file of probabilities."""
    if job.teacher is not None:
        for file in job.logits:
            pipeline.run.check_free("teacher's probabilities", str(Path(file).absolute()))
    for teacher in job.teachers:
        if not _is_here(teacher):
            pipeline.watch.note(
                f"{teacher} is not here, so its tokenizer cannot be compared with the student's; the tokens of the answers "
                "are compared with those in its file"
            )


def _is_here(model: str) -> bool:
    return model.startswith("tiny:") or Path(model).is_dir()


def with_probabilities(
    pipeline: Pipeline,
    job: WhiteBoxJob,
    student: ModelConfig,
    teacher: ModelConfig | None,
    prompts: Path,
    rows: Path,
    train: TrainConfig,
    thinking: bool | None,
) -> TrainConfig:
    """`train` with the teacher's probabilities in the loss, after they were captured, or read from the files.

    student: as fitted to this machine. prompts: prompts.jsonl of the answers. rows: the training set. Raises UserError for
    files that belong to other rows.
    """
    given = job.distillation
    settings: JsonObject = {
        "objective": OBJECTIVES[given.distillation_type],
        "objective_settings": {"ce_weight": round(1 - given.kd_ratio, 12)},
    }
    if teacher is None:
        settings["teacher_cache"] = {"mode": "given", "folders": _read_files(pipeline, job, rows, train, thinking)}
        return TrainConfig.model_validate(train.model_dump() | settings)
    settings |= {"teacher": pipeline.resolve(teacher), "teacher_cache": {"mode": "top_k", "size": job.top}}
    train = TrainConfig.model_validate(train.model_dump() | settings)
    out = str(job.out.absolute())
    pipeline.teacher_cache(student, rows, train, student=out, thinking=thinking)

    def work(path: Path) -> None:
        from distill_lab.train.cached_teacher import cache_identity, cache_place
        from distill_lab.train.given_logits import write_logits
        from distill_lab.train.teacher_cache import TeacherCache

        cache = TeacherCache.open(cache_place(train, Path(out)), cache_identity(train))
        write_logits(cache, _rows_of(prompts, rows, job.student, train, thinking), path)
        pipeline.watch.note(f"the teacher's probabilities are in {path}")

    inputs = {"prompts": prompts, "rows": rows, "train": train.model_dump(), "teacher": model_inputs(train.teacher)}
    inputs["student"] = model_inputs(job.student)
    for file in job.logits:
        pipeline.run.stage("teacher's probabilities", str(Path(file).absolute()), inputs=inputs, work=work)
    return train


def _read_files(
    pipeline: Pipeline, job: WhiteBoxJob, rows: Path, train: TrainConfig, thinking: bool | None
) -> tuple[str, ...]:
    """The files of probabilities as caches of the training rows: their folders."""
    order = pipeline.prompts("teacher_prompts", DataConfig(path=job.order)).path
    folders = list[str]()
    for number, file in enumerate(job.logits):
        inputs = {
            "file": Path(file), "prompts": order, "rows": rows, "max_length": train.max_length, "thinking": thinking,
            "top": job.top, "student": model_inputs(job.student),
        }  # fmt: skip
        # Another file, or other rows: another folder, whose name is in the key of the training.
        output = f"probabilities/{number}-{fingerprint(inputs)[:8]}"
        name = f"teacher's probabilities {number}" if number else "teacher's probabilities"
        work = _reader(pipeline, job, Path(file), order, rows, train, thinking)
        folders.append(str(pipeline.run.stage(name, output, inputs=inputs, work=work).path.absolute()))
    return tuple(folders)


def _reader(
    pipeline: Pipeline,
    job: WhiteBoxJob,
    file: Path,
    order: Path,
    rows: Path,
    train: TrainConfig,
    thinking: bool | None,
) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        from distill_lab.models.loading import load_tokenizer, without_weights
        from distill_lab.models.token_bytes import token_bytes
        from distill_lab.train.given_logits import import_logits
        from distill_lab.train.loss_module import decoder_and_head

        lines = _rows_of(order, rows, job.student, train, thinking, others=True)
        num_lines = sum(1 for _ in read_jsonl(order))
        _, head = decoder_and_head(without_weights(job.student))
        found = import_logits(
            file, dict(enumerate(lines)), path, num_lines=num_lines, num_ids=head.linear.out_features,
            names=token_bytes(load_tokenizer(job.student)), max_ids=job.top or None,
        )  # fmt: skip
        pipeline.watch.note(f"{file}: {found}")
        write_json(path.with_name(f"{path.name}.json"), asdict(found))

    return work


def _rows_of(
    prompts: Path, rows: Path, student: ModelConfig, train: TrainConfig, thinking: bool | None, *, others: bool = False
) -> list[list[Row]]:
    """For each prompt its training rows as the trainer encodes them; rows of several sequences belong to no prompt.

    Prompts that come several times take their rows in order. others: rows that belong to no prompt follow as one more item.
    """
    from distill_lab.models.loading import load_tokenizer
    from distill_lab.train.rows import encoded_rows

    found: list[list[Row]] = []
    left: list[Row] = []
    places: dict[str, deque[int]] = {}
    for place, row in enumerate(read_jsonl(prompts)):
        places.setdefault(json.dumps(row["messages"]), deque()).append(place)
        found.append([])
    encoded = encoded_rows(rows, load_tokenizer(student), max_length=train.max_length, thinking=thinking)
    for each in encoded:
        queue = places.get(json.dumps(each.prompt))
        if queue is None or len(each.sequences) != 1:
            left += each.sequences
            continue
        found[queue.popleft() if len(queue) > 1 else queue[0]] += each.sequences
    return [*found, left] if others else found
