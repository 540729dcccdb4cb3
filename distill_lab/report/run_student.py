"""The student of a finished run: a run directory -> how to load it.

student_of(Path("runs/demo/system1"))   -> ModelConfig(model="runs/demo/system1/student")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from distill_lab.config import ModelConfig, Quantization
from distill_lab.errors import DataError, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.models.names import is_adapter
from distill_lab.run import Manifest, read_manifest
from distill_lab.types import Fields

STAGE = re.compile(r"student( \d+)?")
"""Names of stages that train a student; a recipe with rounds has one for each."""


def read_run(directory: Path) -> tuple[Manifest, dict[str, Any]]:
    """run.json and summary.json ({} if the run has no summary yet).

    Raises UserError if `directory` is not a run, DataError if one of the files is damaged.
    """
    path = directory / "run.json"
    if not path.is_file():
        raise UserError(f"{directory} is not a run directory (it has no run.json)")
    run = read_manifest(path)
    config = run.get("config")
    if not isinstance(config, dict) or not all(isinstance(config.get(name, {}), dict) for name in ("student", "train")):
        raise DataError(str(path), None, "not the run.json of a run: `config` does not hold a recipe's settings")
    summary = directory / "summary.json"
    return run, read_record(summary) if summary.is_file() else {}


def student_of(directory: Path) -> ModelConfig:
    """The run's student, in the round that the summary chose; adapters with the quantization they were trained on.

    Raises UserError if no student is finished.
    """
    run, summary = read_run(directory)
    stages = {name: stage for name, stage in run["stages"].items() if STAGE.fullmatch(name)}
    done = [stage["at"] for stage in stages.values() if stage["status"] == "done"]
    if not done:
        raise UserError(f"{directory}: this run has no finished student yet; run its command again")
    chosen = str(summary.get("student") or "")
    path = directory / next((at for at in done if chosen and Path(chosen).parts[-2:] == _tail(directory, at)), done[-1])
    if not path.is_dir():
        raise UserError(f"{path}: the student of this run is no longer there; run its command again")
    trained_on = _trained_on(run) if is_adapter(str(path)) else "none"
    quantization: Quantization | None = next((each for each in get_args(Quantization) if each == trained_on), None)
    if quantization is None:
        raise DataError(str(directory / "run.json"), None, "does not say in how many bits the student was trained")
    return ModelConfig(model=str(path), quantization=quantization)


def fitted(run: Fields) -> Fields:
    """What run.json records about the training: `student`, `train` and, in a sentence, `line`; {} if it does not."""
    models = part(run, "models")
    found = [value for name, value in models.items() if name.startswith("training {") and isinstance(value, dict)]
    return found[-1] if found else {}


def part(of: Fields, name: str) -> Fields:
    """A group of settings; empty if there is none."""
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _tail(directory: Path, at: str) -> tuple[str, ...]:
    return (directory / at).parts[-2:]


def _trained_on(run: Manifest) -> object:
    student = fitted(run).get("student") or run["config"].get("student") or {}
    return student.get("quantization", "none") if isinstance(student, dict) else None
