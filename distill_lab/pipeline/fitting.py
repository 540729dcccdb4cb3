"""Model and training settings as this machine runs them: chosen once in a run, recorded in run.json, the same on resume.

model = resolve_model(run, ModelConfig(model="Qwen/Qwen2.5-7B-Instruct", quantization="auto"), engine)
student, train = fit(run, student, train, engine, teacher=teacher, new_tokens=512)
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from distill_lab.config import EngineConfig, ModelConfig, RecipeConfig, TrainConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.generation.engines import resolve_engine_precision
from distill_lab.models.names import api_engine
from distill_lab.run import Run


def resolve_model(run: Run, model: ModelConfig, engine: EngineConfig) -> ModelConfig:
    """`model` with its dtype and quantization. Raises UserError if an earlier execution on another machine chose others.

    Its answers are kept, and never mixed with those of what is another model.
    """
    chosen = resolve_engine_precision(model, engine)
    if chosen == model:
        return model
    from distill_lab.device import best_device, device_name

    name = json.dumps(model.model_dump(exclude_defaults=True), sort_keys=True)
    here = device_name(best_device())
    before = run.recorded(name)
    if before is not None and before["on"] == here:
        return model.model_copy(update={field: before[field] for field in ("dtype", "quantization")})
    found = {"dtype": chosen.dtype, "quantization": chosen.quantization}
    if before is not None and any(before[field] != value for field, value in found.items()):
        raise UserError(
            f"{run.directory}: {model.model} was computed here in {before['dtype']} (quantization "
            f"{before['quantization']}) on {before['on']}; on {here} it would be {chosen.dtype} (quantization "
            f"{chosen.quantization}). Name the first as its settings dtype and quantization to go on as before, "
            "or give another --run directory"
        )
    run.record(name, {**found, "on": here})
    if found != {"dtype": "fp32", "quantization": "none"}:
        bits = (
            "" if chosen.quantization == "none" else f", its weights in {chosen.quantization.replace('bit', ' bits')}"
        )
        run.watch.note(f"{model.model} computes in {chosen.dtype}{bits}")
    return chosen


def fit(
    run: Run,
    student: ModelConfig,
    train: TrainConfig,
    engine: EngineConfig,
    *,
    teacher: ModelConfig | None,
    new_tokens: int,
) -> tuple[ModelConfig, TrainConfig]:
    """Student and training settings that fit this machine.

    Called before the first answer is paid for. teacher: is checked too, if it runs here. Raises UserError with the remedy
    if nothing fits, or if what an earlier execution chose on another machine does not fit this one.
    """
    from distill_lab.device import best_device, device_name
    from distill_lab.planning.machine import this_machine
    from distill_lab.planning.method import check_answering, choose_method, still_fits

    machine, here = this_machine(), device_name(best_device())
    if teacher and not api_engine(teacher.model) and engine.engine != "ray":
        gpus = engine.tensor_parallel_size if engine.engine == "vllm" else machine.num_gpus
        # Nothing can be said without its config: loading it will say why, and a finished run needs no teacher.
        with suppress(ModelError):
            model = resolve_model(run, teacher, engine)
            check_answering(model, machine=machine, new_tokens=new_tokens, role="teacher", num_gpus=gpus)
    settings = {"student": student.model_dump(exclude_defaults=True), "train": train.model_dump(exclude_defaults=True)}
    name = f"training {json.dumps(settings, sort_keys=True)}"
    before = run.recorded(name)
    if before is None:
        found = choose_method(student, train, machine=machine)
        run.record(name, {**found.to_json(), "on": here})
        if found.changed or found.memory.total > found.usable / 2:
            run.watch.note(f"training {student.model}: {found.line}")
        return found.student, found.train
    kept = ModelConfig.model_validate(before["student"]), TrainConfig.model_validate(before["train"])
    need = still_fits(*kept, machine=machine) if before["on"] != here else None
    if need is not None:
        raise UserError(
            f"{run.directory}: the training was laid out on {before['on']} ({before['line']}), and needs "
            f"{need.total / 1e9:.1f} GB of the {machine.usable / 1e9:.1f} GB here ({here}); go on there, or give "
            "another --run directory"
        )
    return kept


def student_path(out: str) -> str:
    """Where the student goes: student/ in the run directory, or the place the user chose, from the current directory."""
    return str(Path(out).absolute()) if out else "student"


def trained_model_config(out: Path, student: ModelConfig, train: TrainConfig) -> ModelConfig:
    """How the student in `out` is loaded: adapters on the weights they were trained on, anything else as it is."""
    adapters = train.lora.r and not train.lora.merge
    quantization = student.quantization if adapters else "none"
    return ModelConfig(model=str(out), quantization=quantization, dtype=student.dtype)


def models_to_compare(
    config: RecipeConfig, out: Path, student: ModelConfig, train: TrainConfig
) -> dict[str, ModelConfig]:
    """ "teacher", "base" and "student" (trained, in `out`); `student` and `train` as they were fitted to this machine."""
    return {
        "teacher": config.teacher,
        "base": base_model_config(config.student, student, train),
        "student": trained_model_config(out, student, train),
    }


def base_model_config(given: ModelConfig, fitted: ModelConfig, train: TrainConfig) -> ModelConfig:
    """The base student to compare with: as given, or on the quantized weights that its adapters stay on."""
    return fitted if train.lora.r and not train.lora.merge else given
