"""One of several processes that train together: a job from `launch.py` -> the student; the first tells how it goes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from distill_lab import activity
from distill_lab.activity import Activity
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.train.launch import MARK
from distill_lab.train.student import train_student
from distill_lab.types import JsonObject


def main(job: str) -> int:
    """One of the processes."""
    given = json.loads(job)
    is_first = os.environ["RANK"] == "0"

    def tell(event: JsonObject) -> None:
        # With its line end in one piece: other processes write to the same pipe.
        print(f"{MARK}{json.dumps(event)}\n", end="", flush=True)

    def on_log(row: JsonObject) -> None:
        if is_first:
            tell({"log": row})

    def on_activity(doing: Activity | None) -> None:
        if is_first:
            tell({"doing": [doing.text, doing.done, doing.total] if doing else None})

    try:
        with activity.listening(on_activity):
            result = train_student(
                ModelConfig(**given["student"]),
                Path(given["rows"]),
                Path(given["out"]),
                TrainConfig(**given["config"]),
                thinking=given["thinking"],
                on_log=on_log,
                log_file=Path(given["log_file"]) if given["log_file"] else None,
            )
    except UserError as error:
        tell({"error": str(error)})
        return 2
    if is_first:
        tell({"result": asdict(result)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
