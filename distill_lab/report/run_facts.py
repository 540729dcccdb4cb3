"""What was trained, on what, when and where: run.json of a run -> RunFacts, for the page's head and for tables of runs.

found = read_facts(Path("runs/demo/system1"))
found.teacher, found.rows, found.state        "tiny:teacher", 16000, "done"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distill_lab.errors import UserError
from distill_lab.files.locks import take_lock
from distill_lab.report.model_card import short_name, training_text
from distill_lab.report.run_student import fitted, part
from distill_lab.run import Manifest, StageRecord, read_manifest
from distill_lab.types import Fields

DONE = "done"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run in words. Empty: not recorded."""

    directory: Path
    recipe: str
    state: str
    """done, running, stopped in STAGE, or not finished."""
    date: str
    """When it began, 2026-11-30."""
    teacher: str
    student: str
    data: str
    """Data and slice."""
    rows: int | None
    """Training rows."""
    training: str
    """Method, objective, epochs, learning rate."""
    machine: str
    seconds: float
    """Of all stages."""

    def in_words(self) -> dict[str, str]:
        """The facts by name."""
        return {
            "Recipe": self.recipe,
            "Teacher": self.teacher,
            "Student": self.student,
            "Data": self.data,
            "Training rows": f"{self.rows:,}" if self.rows is not None else "",
            "Training": self.training,
            "Machine": self.machine,
            "Began": self.date,
        }


def read_facts(directory: Path) -> RunFacts:
    """The facts of the run in a directory. Raises UserError if it is not a run, or its run.json is damaged."""
    path = directory / "run.json"
    if not path.exists():
        raise UserError(f"{directory} is not a run directory (it has no run.json)")
    return facts_of(read_manifest(path), directory)


def facts_of(manifest: Manifest, directory: Path) -> RunFacts:
    """The facts in the content of a run.json."""
    config, stages = manifest["config"] if isinstance(manifest["config"], dict) else {}, manifest["stages"]
    data, plan = part(config, "data"), fitted(manifest)
    train = part(plan, "train") or part(config, "train")
    counts = next((stages[name].get("counts") for name in ("training set", "shuffled answers") if name in stages), None)
    split = str(data.get("split", ""))
    places = [str(each["on"]) for name, each in manifest["models"].items() if each.get("on") and "training" in name]
    return RunFacts(
        directory=directory,
        recipe=str(manifest["recipe"]),
        state=_state(stages, directory),
        date=str(manifest.get("date") or "")[:10],
        teacher=_model(config, "teacher"),
        student=_model(config, "student"),
        data=" ".join(filter(None, [short_name(str(data["path"])) if data.get("path") else "", split])),
        rows=counts["kept"] if counts else None,
        training=_training(plan, train),
        machine=places[-1] if places else "",
        seconds=sum(stage["seconds"] for stage in stages.values()),
    )


def _training(plan: Fields, train: Fields) -> str:
    try:
        return training_text(plan, train)
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""  # of a version that recorded other settings


def _model(config: Fields, role: str) -> str:
    name = part(config, role).get("model")
    return short_name(str(name)) if name else ""


def _state(stages: Mapping[str, StageRecord], directory: Path) -> str:
    unfinished = [name for name, stage in stages.items() if stage["status"] != "done"]
    if not unfinished:
        return DONE if (directory / "summary.json").is_file() else "not finished"
    return "running" if _in_use(directory / ".lock") else f"stopped in {unfinished[-1]}"


def _in_use(lock: Path) -> bool:
    """Whether another process has the run's lock; False if that cannot be found out."""
    if not lock.is_file():
        return False
    try:
        take_lock(lock, busy="busy").close()
    except UserError as error:
        return str(error) == "busy"
    except OSError:
        return False
    return False
