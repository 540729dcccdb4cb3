"""The guard of processes: what a killed process began is ended, what was there before is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("forked", [False, True])
def test_what_a_killed_process_leaves_behind_is_ended(tmp_path: Path, forked: bool) -> None:
    pids = tmp_path / "pids"
    script = f"""
        import os, subprocess, sys, time
        from distill_lab.generation.engines._process_guard import Guard
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        before = subprocess.Popen(sleep)
        guard = Guard()
        if {forked}:
            late = os.fork() or time.sleep(600)
        else:
            late = subprocess.Popen(sleep).pid
        if {forked}:
            time.sleep(2)
        guard.seal()
        with open({str(pids)!r} + ".part", "w") as file:
            print(before.pid, late, guard._process.pid, file=file)
        os.rename({str(pids)!r} + ".part", {str(pids)!r})
        time.sleep(600)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    while not pids.exists():
        assert child.poll() is None
        time.sleep(0.05)
    earlier, late, guard = (psutil.Process(int(pid)) for pid in pids.read_text().split())
    time.sleep(1.5)
    assert late.is_running()
    assert guard.is_running()
    child.kill()
    child.wait()
    deadline = time.monotonic() + 30
    while any(is_alive(process) for process in (late, guard)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert is_alive(earlier)
    earlier.kill()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
