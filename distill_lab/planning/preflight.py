"""Reject settings that are sure to fail, before the first stage: settings -> nothing, or a UserError with the remedy.

    check_before(config, out={"student": student_path(config.out)}, run=run)      a recipe's settings, before its first stage
    check_training(config.student, config.train)                                  for `distill train`

Loads only tokenizers and configs, generates nothing, and sends nothing to servers. If possible, it asks the library that
uses a setting, so that both agree.
"""

from __future__ import annotations

import netrc
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from distill_lab.config import EngineConfig, ModelConfig, RecipeConfig, SamplingConfig, TrainConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.files.claims import check_is_name
from distill_lab.files.outputs import writing
from distill_lab.generation.engines import check_engine, check_format
from distill_lab.grading.grade import check_golds
from distill_lab.grading.graders import find_grader, judge_model, load_grader, metric_of
from distill_lab.models.names import api_engine
from distill_lab.planning.presets import is_tiny
from distill_lab.run import Run
from distill_lab.train.cached_teacher import GIVEN, check_cache
from distill_lab.train.objectives import load_objective
from distill_lab.train.teachers import check_teacher

AUTO = ("auto", "final-answer")
"""Grader names that mean a choice by the data."""
OFF = ("none", "all")
"""Values of report_to that are not trackers."""


def check_before(config: RecipeConfig, *, run: Run, out: Mapping[str, str], example: str) -> None:
    """Reject settings of a recipe that cannot work, before anything is generated or trained.

    config: has teacher, student, data, test, sampling, test_sampling, grader, engine and train. out: stage -> its output
    path. example: an existing student, for the error message. Raises UserError (ModelError for models).
    """
    for stage, output in out.items():
        run.check_free(stage, output)
        check_writable(run.path(output))
    for name in ("sampling", "test_sampling"):
        check_sampling(getattr(config, name), flag=f"--{name.replace('_', '-')}")
    check_format(config.teacher, config.engine, config.sampling, flag="--sampling")
    if config.test.path or config.num_test:
        for model in (config.teacher, config.student):
            check_format(model, config.engine, config.test_sampling, flag="--test-sampling")
    check_server_settings([config.teacher, *judges(config.grader)], config.engine)
    if config.test.path and is_tiny(config.test.path) and not is_tiny(config.data.path):
        raise UserError(
            f"the test set {config.test.path} does not match {config.data.path}; give --test data of the same kind, or "
            '--test "" to hold out rows of the data'
        )
    check_grader(config.grader, config.engine)
    check_model(config.student, role="student", example=example)
    check_training(config.student, config.train, on_policy=hasattr(config, "rollout"))
    if asks_teacher(config) or config.test.path:
        check_engine(config.teacher, config.engine)
        check_model(config.teacher, role="teacher", example="Qwen/Qwen2.5-7B-Instruct")
    if config.test.path or config.num_test:
        check_engine(config.student, config.engine)


def asks_teacher(config: RecipeConfig) -> bool:
    """Whether a recipe needs the teacher for its training set."""
    return getattr(config, "relabel", True) or getattr(config, "thinking", "") in ("summarise", "summarize")


def check_test(test: Path, config: RecipeConfig) -> None:
    """If there are test prompts, reject a missing teacher and gold answers that the grader cannot use."""
    if not test.stat().st_size:
        return
    check_engine(config.teacher, config.engine)
    check_model(config.teacher, role="teacher", example="Qwen/Qwen2.5-7B-Instruct")
    if config.grader in AUTO or not metric_of(config.grader).similarity:
        check_gold(test, config.grader)  # for similarity, the teacher's answers can also be the reference


def check_model(config: ModelConfig, *, role: str, example: str) -> None:
    """Raise UserError `Invalid <role> model: <name>` with the reason and an example, before any expensive work."""
    if role == "student" or not api_engine(config.model):
        try:
            check_loads(config)
        except ModelError as error:
            raise UserError(f"Invalid {role} model: {config.model}\nExample: {example}\nReason: {error}") from error


def check_loads(config: ModelConfig) -> None:
    """Raise ModelError if the model does not exist, has no tokenizer, or cannot be quantized as requested."""
    from distill_lab.models.loading import load_tokenizer, without_weights

    load_tokenizer(config)
    if config.quantization in ("4bit", "8bit"):
        without_weights(config)


def check_generation(
    model: ModelConfig, engine: EngineConfig, sampling: SamplingConfig, *, grader: str = AUTO[0]
) -> None:
    """Reject a model, engine and sampling that cannot generate; errors of a server only show with the first request.

    grader: of the answers; a judge may be the model that the engine's prices are for.
    """
    check_sampling(sampling, flag="--sampling")
    check_format(model, engine, sampling, flag="--sampling")
    check_server_settings([model, *judges(grader)], engine)
    check_engine(model, engine)
    if not api_engine(model.model):
        check_loads(model)


def check_server_settings(models: Sequence[ModelConfig], engine: EngineConfig) -> None:
    """Reject prices and batches if no model is on a server."""
    if any(api_engine(model.model) for model in models):
        return
    where = f"{models[0].model} runs here" if models else "no model is asked"
    for flag, given in (("batch", engine.batch), ("price", engine.price.known)):
        if given:
            raise UserError(f"--engine.{flag} is for a model on a server (openai:NAME), but {where}; remove it")


def judges(grader: str) -> list[ModelConfig]:
    """The model that a grader asks, if it asks one."""
    model = None if grader in AUTO else judge_model(grader)
    return [model] if model else []


def check_grader(name: str, engine: EngineConfig) -> None:
    """Reject an unknown grader, and a judge whose model or engine does not exist."""
    if name in AUTO:
        return
    model = judge_model(name)
    if model is not None:
        check_engine(model, engine)
        check_model(model, role="judge", example="judge:openai:NAME, judge:Qwen/Qwen2.5-7B-Instruct")


def check_gold(prompts: Path, grader: str, *, source: str = "") -> None:
    """Reject test prompts without gold answers, or none of which `grader` can read. A judge needs none.

    source: what the user calls the prompts, if `prompts` is a file made from it.
    """
    if grader in AUTO or find_grader(grader)[1] is not None:
        return
    check_golds(prompts, load_grader(grader), source=source)


def check_sampling(sampling: SamplingConfig, *, flag: str) -> None:
    """Reject several samples per prompt that would all be identical."""
    if sampling.num_samples > 1 and sampling.temperature == 0 and not sampling.from_model:
        raise UserError(
            f"{flag}.num-samples {sampling.num_samples} at temperature 0 gives the same answer each time; set "
            f"{flag}.temperature above 0, or num-samples to 1"
        )


def check_writable(path: Path) -> None:
    """Reject a path that cannot be written, by trying its nearest existing folder."""
    check_is_name(path)
    with writing(path):
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{path}: {folder} is a file, not a folder; choose another path")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{path}: {folder} is not writable ({error.strerror}); choose another path") from None


def check_training(student: ModelConfig, train: TrainConfig, *, on_policy: bool = False) -> None:
    """Reject training settings that the trainer would reject later, once it has the data.

    on_policy: whether the student writes what it is trained on.
    """
    if student.quantization in ("4bit", "8bit") and not train.lora.r:
        raise UserError(
            f"{student.model}: {student.quantization} weights cannot be trained; train adapters on them "
            "(--train.lora.r 16), or use --student.quantization none"
        )
    load_objective(train.objective, train.objective_settings)
    if train.teacher_cache.mode != GIVEN:
        check_teacher(train.objective, train.teacher, student, on_policy=on_policy)
    check_cache(train)
    check_trackers(train.report_to)
    _check_optimizer(train)
    _check_targets(student, train)


def check_trackers(names: tuple[str, ...]) -> None:
    """Reject trackers that transformers does not know, and those whose package is not installed."""
    named = [name for name in names if name not in OFF]
    if not named:
        return
    from transformers.integrations import integration_utils

    known, there = integration_utils.INTEGRATION_TO_CALLBACK, integration_utils.get_available_reporting_integrations()
    for name in named:
        if name not in known:
            raise UserError(f"--train.report-to {name}: no such tracker; choose from {', '.join(sorted(known))}")
        if name not in there:
            raise UserError(f"--train.report-to {name} needs a package that is not installed; pip install {name}")
    if "wandb" in named and not _wandb_has_key():
        raise UserError(
            "--train.report-to wandb: this machine has no key for it; run `wandb login`, set WANDB_API_KEY, or track "
            "without a network (WANDB_MODE=offline)"
        )


def _wandb_has_key() -> bool:
    """Whether wandb will find a key where it looks for one, or needs none."""
    given = any(os.environ.get(name, "").strip() for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    if given or os.environ.get("WANDB_MODE", "online") != "online":
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with suppress(OSError, netrc.NetrcParseError):
            if file and netrc.netrc(Path(file).expanduser()).authenticators(host):
                return True
    return False


def _check_optimizer(train: TrainConfig) -> None:
    """Create optimizer and scheduler as the trainer will, for a single weight."""
    import torch
    from transformers import Trainer, TrainingArguments, get_scheduler
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for flag, name, kind in (
        ("--train.optim", train.optim, OptimizerNames),
        ("--train.lr-scheduler-type", train.lr_scheduler_type, SchedulerType),
    ):
        known = [each.value for each in kind]
        if name not in known:
            raise UserError(f"{flag} {name}: unknown value; choose from {', '.join(known)}")
    has_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, optim=train.optim, report_to="none", use_cpu=not has_gpu)
        try:
            Trainer.get_optimizer_cls_and_kwargs(arguments)
        except (ImportError, ValueError, RuntimeError) as error:
            raise UserError(f"--train.optim {train.optim}: {error}") from None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    extra = {"min_lr_rate": train.min_lr_rate} if "min_lr" in train.lr_scheduler_type else None
    try:
        get_scheduler(
            train.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=9,
            scheduler_specific_kwargs=extra,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--train.lr-scheduler-type {train.lr_scheduler_type} needs settings that have no flags ({error})"
        ) from None


def _check_targets(student: ModelConfig, train: TrainConfig) -> None:
    """Reject adapters for layers that the student does not have, or that cannot have adapters."""
    if not train.lora.r or train.lora.targets == ("all-linear",):
        return
    from distill_lab.models.loading import without_weights
    from distill_lab.train.targets import adapter_targets

    adapter_targets(without_weights(student), train.lora.targets, name=student.model)
