"""What an experiment will cost, before it starts: arms -> a line per variant, with the teacher's work counted once.

    for line in plan_experiment(arms, students, machine=this_machine(), cached=True): line.seconds, line.new_answers

Slices of the same data that begin at the same row share their answers: the request cache pays for each prompt once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.config import ModelConfig
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.fingerprints import fingerprint
from distill_lab.pipeline.experiments.arms import Arm
from distill_lab.planning.forecast import make_forecast
from distill_lab.planning.machine import Machine

TEACHER = "teacher answers"
"""The stage of a forecast in which the teacher answers the training prompts."""


@dataclass(frozen=True)
class ArmCost:
    """One line of the plan."""

    arm: Arm
    done: bool
    """Its run is finished already, by this experiment or another one."""
    shared: bool
    """An arm before it has the same settings, so nothing is trained."""
    rows: int
    new_answers: int
    """Answers of the teacher that no arm before it asked for."""
    tokens: float
    """Generated for those answers, estimated."""
    seconds: float | None
    """Estimated, of everything that is left to do; None: not known."""
    problems: tuple[str, ...]


def plan_experiment(arms: Sequence[Arm], students: Path, *, machine: Machine, cached: bool) -> list[ArmCost]:
    """The cost of each arm, in their order; loads no weights and writes nothing.

    students: folder of the runs. cached: whether the request cache is on.
    """
    found: list[ArmCost] = []
    asked: dict[str, int] = {}
    keys: set[str] = set()
    for arm in arms:
        if arm.key in keys:
            found.append(ArmCost(arm, False, True, 0, 0, 0.0, 0.0, ()))
            continue
        keys.add(arm.key)
        config = arm.config
        if arm.cut:  # the whole model instead of the part that is not made yet
            config = config.model_copy(update={"student": ModelConfig(model=arm.cut.model)})
        forecast = make_forecast(arm.recipe, config, directory=students / arm.key, machine=machine)
        done = _is_done(students / arm.key)
        wanted = forecast.volume.num_answers
        source = _source(arm)
        new = max(0, wanted - asked.get(source, 0)) if cached else wanted
        asked[source] = max(wanted, asked.get(source, 0))
        seconds: float | None = 0.0
        tokens = 0.0
        for stage in forecast.stages:
            share = new / wanted if stage.name == TEACHER and wanted else 1.0
            tokens += share * stage.tokens_out if stage.name == TEACHER else 0.0
            seconds = None if seconds is None or stage.seconds is None else seconds + share * stage.seconds
        nothing = done and not forecast.problems
        found.append(
            ArmCost(
                arm, done, False, forecast.volume.rows, 0 if nothing else new, 0.0 if nothing else tokens,
                0.0 if nothing else seconds, forecast.problems,
            )
        )  # fmt: skip
    return found


def _source(arm: Arm) -> str:
    """What answers are shared by: the teacher, how it is asked, and the data without the end of the slice."""
    data = arm.config.data
    return fingerprint(
        [
            arm.config.teacher.model_dump(), arm.config.sampling.model_dump(), getattr(arm.config, "instruction", ""),
            data.path, data.split.partition("[")[0],
        ]
    )  # fmt: skip


def _is_done(run_dir: Path) -> bool:
    if not (run_dir / "summary.json").is_file() or not (run_dir / "run.json").is_file():
        return False
    return all(stage["status"] == "done" for stage in read_record(run_dir / "run.json")["stages"].values())
