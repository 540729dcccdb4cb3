"""Training in several processes: one per GPU (or CPU), on this machine, started and watched from here.

What `train_student` takes -> the same result, trained under `accelerate launch` with one of the settings in
`accelerate/`. Several machines: start `accelerate launch ... -m distill_lab.cli train ...` on each of them instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab import activity
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.train.training_log import OnLog

if TYPE_CHECKING:
    from distill_lab.train.result import TrainResult

SETTINGS = Path(__file__).resolve().parent / "accelerate"
"""accelerate's settings, one file per `TrainConfig.sharding`."""
MARK = "\x1edistill "
"""Begins a line that a training process writes for the one that started it."""


def inside() -> bool:
    """Whether this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def train_in_processes(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    *,
    thinking: bool | None,
    on_log: OnLog,
    log_file: Path | None = None,
) -> TrainResult:
    """As `train_student`, in `config.num_processes` processes. Raises the UserError that one of them stopped with."""
    from distill_lab.device import free_memory
    from distill_lab.train.result import TrainResult

    job = {
        "student": student.model_dump(),
        "rows": str(rows.absolute()),
        "out": str(out.absolute()),
        "config": config.model_dump(),
        "thinking": thinking,
        "log_file": str(log_file.absolute()) if log_file else None,
    }
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(SETTINGS / f"{config.sharding}.yaml")]
    # Port 0: any free one, so that two trainings on one machine do not meet.
    command += ["--num_processes", str(config.num_processes), "--main_process_port", "0"]
    command += ["-m", "distill_lab.train._worker", json.dumps(job)]
    free_memory()  # what this process keeps for itself, the others would not get
    result, errors = None, []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True, encoding="utf-8") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith(MARK):
                    continue
                event = json.loads(line.removeprefix(MARK))
                if "log" in event:
                    on_log(event["log"])
                elif "doing" in event:
                    activity.report(*event["doing"]) if event["doing"] else activity.over()
                elif "error" in event:
                    errors.append(event["error"])
                else:
                    result = TrainResult(**event["result"])
        if errors:
            raise UserError(errors[0])
        if process.returncode or result is None:
            noise.seek(0)
            raise RuntimeError(
                f"training in {config.num_processes} processes ended with code {process.returncode}:\n{noise.read()[-4000:]}"
            )
    return result
