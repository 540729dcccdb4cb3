"""A job in a process of its own: a config's path -> exit code, output handed on line by line.

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
    """`easydistill` where that is installed, else `distill run`. relabel: for `distill run`; `easydistill` always does."""
    if shutil.which("easydistill"):
        return ["easydistill", "--config", config]
    return [sys.executable, "-m", "distill_lab.cli", "run", config, *(["--relabel"] if relabel else [])]


def run_process(command: list[str], *, on_line: Callable[[str], None]) -> int:
    """Run a command to its end; it is ended with us, so that no training is left running alone.

    What this process no longer uses of the GPU is given back first: the command needs it. Progress comes as lines now and
    then, though a notebook says of itself that it shows colors: a bar would be a line at every refresh.
    """
    if "torch" in sys.modules:
        from distill_lab.device import free_memory

        free_memory()
    root = str(Path(distill_lab.__file__).resolve().parent.parent)
    places = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    from distill_lab.device import free_memory

    free_memory()  # a kernel's models, deleted, would still be kept from the process
    process = subprocess.Popen(
        command,
        env={
            **os.environ,
            "PYTHONPATH": places,
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
