"""Read EasyDistill 1.0's JSON configs, check them, and translate them into the lab's settings.

    job = read_job(Path("configs/kd_black_box_qwen_0_5b.json"))

In: a config with `job_type` kd_black_box_local, kd_black_box_api or kd_black_box_train_only (kd_sft means the last one).
Out: a `Job`. EasyDistill has no defaults; here a key may be missing if its default is obvious. An unknown key is an error,
and so is a training setting that would change the student but that the lab's trainer does not have. Relative paths are
relative to the current directory, as in EasyDistill; input files that are not there are also searched next to the config.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, SecretStr, ValidationError

from distill_lab.config import Config, EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.easydistill.training import Training, check
from distill_lab.errors import DataError, UserError
from distill_lab.training_data.training_set import instruction_row
from distill_lab.types import JsonObject, Message

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Text = Annotated[str, Field(min_length=1)]
NumTokens = Annotated[int, Field(ge=1)]


class Data(Config):
    """Fields of `dataset` in every job."""

    labeled_path: Text
    """Instructions with their answers."""
    template: str = ""
    """Not used: a student is trained with its own chat template."""
    seed: int = 42
    """Seed of the row order."""


class TrainOnlyData(Data):
    """`dataset` of a job that only trains."""

    instruction_path: str = ""
    """Not used."""


class TeacherData(Data):
    """`dataset` of a job with a teacher."""

    instruction_path: Text
    """Instructions for the teacher."""


class LocalInference(Config):
    """`inference` of a teacher on this machine."""

    max_new_tokens: NumTokens = 512
    temperature: Annotated[float, Field(ge=0)] = 0.8
    seed: int = 0
    trust_remote_code: bool = False
    enable_chunked_prefill: bool | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    max_model_len: int | None = None


class ApiInference(Config):
    """`inference` of a teacher on an OpenAI-compatible server."""

    base_url: Text
    api_key: SecretStr = SecretStr("")
    stream: bool = False
    system_prompt: str = ""
    max_new_tokens: NumTokens = 512


class Models(Config):
    """`models` of a job that needs no teacher name."""

    student: Text
    teacher: str = ""
    """In an API job: the server's name for the teacher; empty: the first model that the server lists."""


class Pair(Config):
    """`models` of a job with a teacher on this machine."""

    student: Text
    teacher: Text


class LocalConfig(Config):
    """kd_black_box_local."""

    job_type: str
    dataset: TeacherData
    models: Pair
    training: Training
    inference: LocalInference = LocalInference()


class ApiConfig(Config):
    """kd_black_box_api."""

    job_type: str
    dataset: TeacherData
    models: Models
    training: Training
    inference: ApiInference


class TrainOnlyConfig(Config):
    """kd_black_box_train_only; settings for a teacher are ignored."""

    job_type: str
    dataset: TrainOnlyData
    models: Models
    training: Training
    inference: JsonObject = Field(default_factory=dict)


JOBS: dict[str, type[LocalConfig] | type[ApiConfig] | type[TrainOnlyConfig]] = {
    "kd_black_box_local": LocalConfig,
    "kd_black_box_api": ApiConfig,
    "kd_black_box_train_only": TrainOnlyConfig,
    "kd_sft": TrainOnlyConfig,
}
WHITE_BOX_JOBS = ("kd_white_box", "kd_white_box_train_only", "kd_white_box_train_only_multi")
"""Read by `white_box.py`."""
DRAFT_JOB = "speckd_local"
"""Read by `speckd.py`."""
TEXT_JOBS = (
    *(
        f"{name}_{how}"
        for name in (
            "cot_generation", "cot_long2short", "cot_short2long", "instruction_expansion", "instruction_refinement",
            "instruction_response_extraction",
        )
        for how in ("api", "batch")
    ),
    "cot_eval_api", "instruct_eval_api", "instruct_sample_api",
)  # fmt: skip
"""Read by `text_jobs.py`."""
OTHER_JOBS: dict[str, str | None] = {
    **dict.fromkeys(TEXT_JOBS, "commands.synthesize"),
}
"""EasyDistill's other jobs, and the module of the lab's command for the same purpose, if it has one."""
VLLM_ONLY = ("enable_chunked_prefill", "gpu_memory_utilization", "enforce_eager", "max_model_len")
WHITE_BOX_KEYS = ("distillation", "logits_path", "top_logits_num")


@dataclass(frozen=True)
class Job:
    """A job as the lab's settings."""

    path: Path
    """The config file."""
    instructions: str | None
    """Path of the data set with instructions for the teacher; None if the job only trains."""
    labeled: Path
    """Instructions with answers: written if there is a teacher, otherwise read."""
    teacher: ModelConfig | None
    engine: EngineConfig
    sampling: SamplingConfig
    system_prompt: str
    """System prompt for the teacher; the student does not get it."""
    api_key: SecretStr
    student: ModelConfig
    out: Path
    """Output directory for the student."""
    training: Training
    seed: int
    notes: tuple[str, ...]
    """Notes for the user about the translation."""

    def labeled_row(self, messages: Sequence[Message], answer: str) -> JsonObject:
        """A row of `labeled` for an answer that the teacher gave."""
        return instruction_row(messages, answer)

    def to_json(self) -> JsonObject:
        """The config in run.json, without the API key."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del row["api_key"], row["notes"]
        return {
            name: value.model_dump() if isinstance(value, Config) else str(value) if isinstance(value, Path) else value
            for name, value in row.items()
        }


def read_job(path: Path) -> Job:
    """Read the job in `path`. Raises UserError naming file, key and remedy, DataError if the file is not JSON."""
    raw = read_json(path)
    name = raw.get("job_type")
    if not isinstance(name, str) or name not in JOBS:
        raise UserError(f"{path}: {_no_such_job(name)}")
    try:
        config = JOBS[name].model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {problem(each)}" for each in error.errors())) from None
    return make_job(path, config)


def make_job(path: Path, config: LocalConfig | ApiConfig | TrainOnlyConfig) -> Job:
    """The job that the checked config in `path` describes. Raises UserError for settings that cannot be translated."""
    training, notes = config.training, list[str]()
    left = check(path, training)
    if isinstance(config, LocalConfig):
        left += [f"inference.{name}" for name in VLLM_ONLY if getattr(config.inference, name) is not None]
    if left:
        notes.append(f"ignored, because the lab chooses these itself for this machine: {', '.join(left)}")
    if config.dataset.template:
        notes.append("dataset.template is not used: the student is trained with its own chat template")
    teacher, engine, sampling = None, EngineConfig(), SamplingConfig()
    system_prompt, api_key = "", SecretStr("")
    if isinstance(config, LocalConfig):
        local = config.inference
        name = model_name(path, config.models.teacher)
        teacher = ModelConfig(model=name, quantization="auto", trust_remote_code=local.trust_remote_code)
        sampling = SamplingConfig(
            max_new_tokens=local.max_new_tokens, temperature=local.temperature, seed=local.seed, thinking=False
        )
    elif isinstance(config, ApiConfig):
        api = config.inference
        teacher = ModelConfig(model=f"openai:{config.models.teacher}")
        engine = EngineConfig(base_url=_base_url(path, api.base_url))
        sampling = SamplingConfig(max_new_tokens=api.max_new_tokens, temperature=1.0)
        system_prompt, api_key = api.system_prompt, api.api_key
    seed = config.dataset.seed if training.seed is None else training.seed
    return Job(
        path=path,
        instructions=str(located(path, config.dataset.instruction_path)) if teacher else None,
        labeled=located(path, config.dataset.labeled_path),
        teacher=teacher,
        engine=engine,
        sampling=sampling,
        system_prompt=system_prompt,
        api_key=api_key,
        student=ModelConfig(model=model_name(path, config.models.student)),
        out=Path(training.output_dir).expanduser(),
        training=training,
        seed=seed,
        notes=tuple(notes),
    )


def read_json(path: Path) -> JsonObject:
    """The config in `path`. Raises UserError or DataError for what is not one JSON object with each key once."""

    def once(pairs: list[tuple[str, object]]) -> JsonObject:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{path}: duplicate key {twice[0]!r} in an object; keep only one")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise UserError(f"{path}: {constant} is not JSON; give a number")

    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once, parse_constant=refuse)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of an EasyDistill config (.json)") from None
    except json.JSONDecodeError as error:
        raise DataError(str(path), error.lineno, f"not JSON ({error.msg}); an EasyDistill 1.0 config is JSON") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(str(path), None, f"not usable JSON ({error}); save it as UTF-8") from None
    if not isinstance(config, dict):
        raise DataError(str(path), None, f"expected one JSON object, found {type(config).__name__}")
    return config


def _no_such_job(name: object) -> str:
    supported = (*JOBS, *WHITE_BOX_JOBS, DRAFT_JOB)
    known = ", ".join((*supported, *TEXT_JOBS))
    if name is None:
        return f"job_type: missing; give one of {known}"
    if isinstance(name, str) and name in OTHER_JOBS:
        module = OTHER_JOBS[name]
        if module and find_spec(f"distill_lab.{module}"):
            return f"job_type {name}: use `distill {module.partition('.')[2]}` instead (see its --help)"
        return f"job_type {name}: not supported; `distill run` supports {known}"
    close = get_close_matches(str(name), [*supported, *OTHER_JOBS], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"job_type {name!r}: no such job; {hint}Choose from {known}"


def problem(error: ErrorDetails) -> str:
    """One of a ValidationError's errors in a sentence: key and remedy."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{key}: missing; give it a value"
    if error["type"] == "extra_forbidden":
        if error["loc"][-1] in WHITE_BOX_KEYS:
            return f"{key}: belongs to the white-box jobs; remove it"
        return f"{key}: no such key; check its spelling or remove it"
    return f"{key}: {error['msg']}"


def _base_url(path: Path, url: str) -> str:
    try:
        return check_base_url(url)
    except UserError as error:
        raise UserError(f"{path}: inference.base_url: {error}") from None


def located(config: Path, text: str) -> Path:
    """A path relative to the current directory, or next to the config if it exists only there."""
    path = Path(text).expanduser()
    near_config = config.parent / path
    return near_config if not path.exists() and near_config.exists() else path


def model_name(config: Path, text: str) -> str:
    """A model's directory, searched like every path, or its name (EasyDistill's examples end in a slash)."""
    path = located(config, text)
    return str(path) if path.is_dir() else text.rstrip("/")
