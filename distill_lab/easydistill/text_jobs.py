"""Run EasyDistill 1.0's text jobs, which make data from data: a JSON config -> the rows in `output_path`.

    made = run("configs/instruction_expansion_api.json")

`TEXT_JOBS` of `config.py` lists them; `distill_lab/pipeline/synthesis` does the work, in the run directory
`<output_path>.run`, where the same call resumes. Rows are those of EasyDistill, with these differences: `instruction` is the
row's instruction and not the whole request; every answer is with the instruction that it answers; what cannot be read is
asked again, then left out and counted, and so are copies. A config's `prompt` is the request as it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr, ValidationError

from distill_lab.activity import ProgressReporter
from distill_lab.config import Config, DataConfig, EngineConfig, ModelConfig, SamplingConfig, check_base_url
from distill_lab.easydistill.config import (
    TEXT_JOBS,
    LocalInference,
    NumTokens,
    Text,
    located,
    model_name,
    problem,
    read_json,
)
from distill_lab.easydistill.job import in_environment
from distill_lab.easydistill.server import first_model
from distill_lab.errors import UserError
from distill_lab.pipeline.synthesis.choose import checked, custom_name
from distill_lab.pipeline.synthesis.jobs import load
from distill_lab.pipeline.synthesis.settings import SynthesisConfig
from distill_lab.pipeline.synthesis.synthesize import Made, synthesize
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.types import JsonObject

JUDGE = "JUDGE_MODEL"
"""Environment variable with the name of the model that rates, as in EasyDistill."""
JOBS = {
    "instruction_expansion": "expand",
    "instruction_refinement": "refine",
    "instruction_response_extraction": "extract",
    "cot_generation": "cot",
    "cot_long2short": "shorten",
    "cot_short2long": "lengthen",
    "cot_eval": "rate",
    "instruct_eval": "rate",
    "instruct_sample": "balance",
}
"""EasyDistill's name without _api or _batch -> the lab's job."""
KINDS = {"cot_eval": "cot", "instruct_eval": "answer"}
ENGINE = ("gpu_memory_utilization", "max_model_len", "enforce_eager")
"""Settings of `inference` that the engine vllm takes."""


class RowsData(Config):
    """`dataset` of every text job."""

    input_path: Text
    output_path: Text
    template: str = ""
    """Not used: a teacher is asked with its own chat template."""
    num_in_context_samples: NumTokens = 3
    """Only of instruction_expansion."""
    num_output_samples: NumTokens = 10
    """Only of instruction_expansion."""


class ServerInference(Config):
    """`inference` of a job on an OpenAI-compatible server."""

    base_url: Text
    api_key: SecretStr = SecretStr("")
    max_new_tokens: NumTokens = 512
    stream: bool = False
    """Not needed: an answer is taken when it is complete. Only of jobs that write."""
    prompt: str = ""
    """The request; empty: the lab's. Only of jobs that write."""


class LocalTextInference(LocalInference):
    """`inference` of a job on this machine."""

    prompt: str = ""
    """The request; empty: the lab's."""


class ServerModels(Config):
    """`models` of a job on a server, which may be left out."""

    teacher: str = ""
    """The server's name for the model; empty: the first one that it lists."""


class LocalModels(Config):
    """`models` of a job on this machine."""

    teacher: Text


class ServerConfig(Config):
    """The jobs that end in _api."""

    job_type: str
    dataset: RowsData
    inference: ServerInference
    models: ServerModels = ServerModels()


class LocalConfig(Config):
    """The jobs that end in _batch."""

    job_type: str
    dataset: RowsData
    models: LocalModels
    inference: LocalTextInference = LocalTextInference()


ONLY_EXPANSION = ("num_in_context_samples", "num_output_samples")
ONLY_WRITING = ("stream", "prompt")


@dataclass(frozen=True)
class TextJob:
    """A text job as the lab's settings."""

    job: str
    settings: SynthesisConfig
    """If its model is `openai:`, the server names it."""
    template: Template | None
    """The config's request."""
    out: Path
    api_key: SecretStr
    notes: tuple[str, ...]
    """Notes for the user about the translation."""


def is_text_job(path: Path) -> bool:
    """Whether the config in `path` is one of a text job. Raises UserError or DataError for what is not a config."""
    return read_json(path).get("job_type") in TEXT_JOBS


def run(config: str | Path, *, relabel: bool = False, watch: ProgressReporter | None = None) -> Made:
    """Run the job in `config`, or resume it.

    relabel: replace rows in `output_path` that this command made with other settings. Raises UserError (DataError,
    ModelError, NoData) for problems with the config, a file or a model.
    """
    job = read_text_job(Path(config))
    watch = watch or ProgressReporter()
    with in_environment(job.api_key.get_secret_value()):
        settings = job.settings
        if settings.model.model == "openai:":
            model = ModelConfig(model=f"openai:{first_model(settings.engine.base_url)}")
            settings = settings.model_copy(update={"model": model})
        for note in job.notes:
            watch.note(note)
        try:
            return synthesize(job.job, settings, job.out, template=job.template, overwrite=relabel, watch=watch)
        except UserError as error:
            if "--overwrite" in str(error):
                raise UserError(str(error).replace("--overwrite", "--relabel")) from None
            raise


def read_text_job(path: Path) -> TextJob:
    """Read the job in `path`. Raises UserError naming file, key and remedy, DataError if the file is not JSON."""
    raw = read_json(path)
    kind, _, place = str(raw.get("job_type")).rpartition("_")
    try:
        config = (LocalConfig if place == "batch" else ServerConfig).model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {problem(each)}" for each in error.errors())) from None
    _check_keys(path, JOBS[kind], config)
    try:
        settings = _settings(path, kind, config)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: inference.{problem(each)}" for each in error.errors())) from None
    notes: list[str] = []
    if config.dataset.template:
        notes.append("dataset.template is not used: the teacher is asked with its own chat template")
    key = SecretStr("")
    if isinstance(config, LocalConfig):
        notes += _engine_notes(config.inference)
    else:
        key = config.inference.api_key
        if config.inference.stream:
            notes.append("inference.stream is not needed: an answer is taken when it is complete")
    template = _template(path, JOBS[kind], config.inference.prompt)
    return TextJob(JOBS[kind], settings, template, Path(config.dataset.output_path).expanduser(), key, tuple(notes))


def _check_keys(path: Path, job: str, config: ServerConfig | LocalConfig) -> None:
    """Raise UserError for a key that this job does not have."""
    wrong = [] if job == "expand" else [f"dataset.{name}" for name in ONLY_EXPANSION if name in _given(config.dataset)]
    if job in ("rate", "balance"):
        wrong += [f"inference.{name}" for name in ONLY_WRITING if name in _given(config.inference)]
    if wrong:
        raise UserError("\n".join(f"{path}: {key}: no such key in {config.job_type}; remove it" for key in wrong))


def _given(section: Config) -> set[str]:
    return section.model_fields_set


def _settings(path: Path, kind: str, config: ServerConfig | LocalConfig) -> SynthesisConfig:
    job, data = JOBS[kind], DataConfig(path=str(located(path, config.dataset.input_path)))
    if isinstance(config, LocalConfig):
        local = config.inference
        name = model_name(path, config.models.teacher)
        model = ModelConfig(model=name, quantization="auto", trust_remote_code=local.trust_remote_code)
        engine = EngineConfig(**{name: getattr(local, name) for name in ENGINE if getattr(local, name) is not None})
        sampling = SamplingConfig(
            max_new_tokens=local.max_new_tokens, temperature=local.temperature, seed=local.seed, thinking=_thinking(job)
        )
        seed = local.seed
    else:
        server = config.inference
        judge = os.environ.get(JUDGE, "") if kind in KINDS else ""
        model = ModelConfig(model=f"openai:{config.models.teacher or judge}")
        try:
            engine = EngineConfig(base_url=check_base_url(server.base_url))
        except UserError as error:
            raise UserError(f"{path}: inference.base_url: {error}") from None
        # EasyDistill sends no temperature, which means 1; a rating is to be the same each time.
        temperature = 0.0 if job in ("rate", "balance") else 1.0
        sampling = SamplingConfig(max_new_tokens=server.max_new_tokens, temperature=temperature)
        seed = 0
    own: JsonObject = {}
    if job == "expand":
        own |= {"num_rows": config.dataset.num_output_samples, "num_shown": config.dataset.num_in_context_samples}
        own["seed"] = seed
    if kind in KINDS:
        own["kind"] = KINDS[kind]
    if job == "balance":
        own["repeat"] = True  # EasyDistill repeats rows of rare types, too
    given = {"model": model, "data": data, "sampling": sampling, "engine": engine, "form": "instruction"}
    return SynthesisConfig.model_validate(given | own)


def _thinking(job: str) -> bool | None:
    """Whether a local model thinks before it answers: only where its thinking is what is wanted, as its template says."""
    return None if job == "cot" else False


def _engine_notes(inference: LocalInference) -> list[str]:
    """What becomes of settings of vLLM."""
    notes = []
    taken = [f"inference.{name}" for name in ENGINE if getattr(inference, name) is not None]
    if taken:
        notes.append(f"used by the engine vllm, and by no other: {', '.join(taken)}")
    if inference.enable_chunked_prefill is not None:
        notes.append("inference.enable_chunked_prefill is ignored, because vLLM chooses it itself")
    return notes


def _template(path: Path, job: str, prompt: str) -> Template | None:
    """The config's request: its text as it is, followed by the material. Raises UserError if it cannot be answered."""
    if not prompt.strip():
        return None
    template = Template(prompt, load(job).PLACEHOLDERS, custom_name(job, prompt), verbatim=True)
    return checked(template, job, f"{path}: inference.prompt")
