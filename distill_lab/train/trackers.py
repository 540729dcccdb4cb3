"""Experiment trackers while training: names of trackers and where a run writes -> transformers' callbacks.

    with named(tracker_run(run.directory)):                                   what this block trains is one run of a tracker
        train_student(...)
    tracker_callbacks(("tensorboard",), current(default))                      in the trainer, also in another process

A training, its continuation after an interruption, further rounds and the scores at the end are the same run of a tracker:
name and id are kept in the run's directory. Trackers in files write there: tensorboard/ and wandb/. What a user has set for
a tracker (WANDB_PROJECT, WANDB_MODE, TENSORBOARD_LOGGING_DIR, TRACKIO_SPACE_ID, ...) holds.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lab.files.jsonl import write_json

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerState, TrainingArguments

PROJECT = "distill-lab"
"""The project in trackers that have some."""
FILE = "tracker.json"
"""In a run's directory: its name and id in trackers, and what each tracker got."""
VARIABLE = "DISTILL_LAB_TRACKER_RUN"
"""For the processes of a training: the run that they belong to."""


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """A run as trackers know it."""

    name: str
    """For people; unique in the project."""
    id: str
    folder: Path
    """Trackers that write files have their folders in it."""

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        given = os.environ.get("TENSORBOARD_LOGGING_DIR")
        return Path(given).expanduser() if given else self.folder / "tensorboard"


def tracker_run(directory: Path) -> TrackerRun:
    """The run in a run directory; its name and id are made once."""
    file = directory / FILE
    known: object = None
    with suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
    name, id = (known.get("name"), known.get("id")) if isinstance(known, dict) else (None, None)
    if not (isinstance(name, str) and isinstance(id, str)):
        id = secrets.token_hex(4)
        name = f"{directory.resolve().name}-{id}"
        write_json(file, {"id": id, "name": name})
    return TrackerRun(name, id, directory.resolve())


def run_beside(out: Path, key: str) -> TrackerRun:
    """The run of a student that is trained by itself; another training of the same rows and settings is the same run."""
    return TrackerRun(f"{out.name}-{key[:8]}", key[:16], out.with_name(f"{out.name}.trackers"))


def is_tracked(names: Sequence[str]) -> bool:
    """Whether `report_to` names a tracker."""
    return any(name != "none" for name in names)


@contextmanager
def named(run: TrackerRun) -> Iterator[None]:
    """What is trained in the block, in this process and those that it starts, belongs to `run`."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps([run.name, run.id, str(run.folder)])
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def current(default: TrackerRun) -> TrackerRun:
    """The run of the block that this is in, or `default`."""
    given = os.environ.get(VARIABLE)
    if not given:
        return default
    name, id, folder = json.loads(given)
    return TrackerRun(name, id, Path(folder))


def tracker_callbacks(names: Sequence[str], run: TrackerRun) -> list[TrainerCallback]:
    """The callback of transformers for each tracker, writing to `run`. The packages must be installed (`check_trackers`)."""
    from transformers.integrations import integration_utils

    if "all" in names:
        names = integration_utils.get_available_reporting_integrations()
    made: list[TrainerCallback] = []
    for name in dict.fromkeys(names):
        if name == "none":
            continue
        callback = integration_utils.INTEGRATION_TO_CALLBACK[name]()
        if isinstance(callback, integration_utils.TensorBoardCallback):
            callback.logging_dir = str(run.tensorboard)
        elif isinstance(callback, integration_utils.WandbCallback):
            callback.setup = _after(lambda args: wandb_run(run), callback.setup)
        elif isinstance(callback, integration_utils.TrackioCallback):
            callback.setup = _after(lambda args: _name(args, run), callback.setup)
        made.append(callback)
    return made


def _after(first: Callable[[TrainingArguments], object], setup: Callable[..., object]) -> Callable[..., None]:
    """The callback's own setup, in the process that tracks after `first`."""

    def both(args: TrainingArguments, state: TrainerState, model: object, **settings: object) -> None:
        if state.is_world_process_zero:
            first(args)
        setup(args, state, model, **settings)

    return both


def _name(args: TrainingArguments, run: TrackerRun) -> None:
    args.project, args.run_name = PROJECT, run.name


_ours: set[str] = set()
"""Ids of the wandb runs that the lab began in this process."""


def wandb_run(run: TrackerRun) -> Any:
    """The run of wandb, begun or continued. One that the user has begun is used; another one that the lab began ends."""
    import wandb  # pyright: ignore[reportMissingImports]

    id = os.environ.get("WANDB_RUN_ID") or run.id
    if wandb.run is not None and wandb.run.id in _ours - {id}:
        wandb.finish()
    if wandb.run is None:
        folder = Path(os.environ.get("WANDB_DIR") or run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=id,
            name=os.environ.get("WANDB_NAME") or run.name,
            dir=str(folder),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        _ours.add(id)
    return wandb.run


def finish_wandb() -> None:
    """End wandb's run if the lab began it."""
    import wandb  # pyright: ignore[reportMissingImports]

    if wandb.run is not None and wandb.run.id in _ours:
        wandb.finish()
