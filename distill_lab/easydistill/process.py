"""Run a job in a separate process: a config's path -> exit code, with its output passed on line by line.

code = run_process(command("configs/kd_black_box_qwen_0_5b.json"), on_line=print)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import distill_lab


def command(config: str, *, relabel: bool = False) -> list[str]:
    """The `easydistill` command if installed, else `distill run`. relabel: for `distill run`; `easydistill` always does."""
    if shutil.which("easydistill"):
        return ["easydistill", "--config", config]
    return [sys.executable, "-m", "distill_lab.cli", "run", config, *(["--relabel"] if relabel else [])]


def run_process(command: list[str], *, on_line: Callable[[str], None]) -> int:
    """Run a command to its end; if this process ends, so does the command, so that no training is left running.

    First frees GPU memory that this process no longer uses, because the command needs it. Progress is printed as occasional
    lines even though a notebook reports color support, because a bar would print a line at every refresh.
    """
    if "torch" in sys.modules:
        from distill_lab.device import free_memory

        free_memory()  # otherwise a notebook kernel would keep the memory of its deleted models
    root = str(Path(distill_lab.__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "TTY_COMPATIBLE": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            on_line(line.rstrip("\n"))
        return process.wait()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
