"""End the child processes that a killed process (kill -9, out of memory) leaves behind.

    guard = Guard()          before the children start
    guard.seal()             children started later are not guarded
    guard.close()            after they have ended

Libraries that compute in child processes (vLLM) end them on exit; a killed process cannot, and the orphans would keep the
GPU's memory forever, so that the same command could not resume. `Guard` runs this file as a program that waits next to the
process. POSIX systems only.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

import psutil

POLL_S = 0.5


class Guard:
    """A separate process that waits until this one ends, then ends the children that this one started since now."""

    def __init__(self) -> None:
        earlier = [child.pid for child in psutil.Process().children(recursive=True)]
        command = [sys.executable, "-m", __name__, str(os.getpid()), *map(str, earlier)]
        # Import the same modules as here, whatever is in the current folder.
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        # A separate session, so that it does not receive Ctrl-C.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, env=os.environ | paths
        )

    def seal(self) -> None:
        """Stop adding children: all that must be guarded are running now."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def close(self) -> None:
        """Stop guarding: the children have ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main(pid: int, earlier: set[int]) -> None:
    """Wait until the parent, process `pid`, is gone; then kill those of its descendants that are not in `earlier`."""
    guarded: set[psutil.Process] = set()
    adding = True
    # Polls instead of waiting for the pipe to close, because a forked child keeps the pipe open.
    while os.getppid() == pid:
        sealed = bool(select.select([sys.stdin] if adding else [], [], [], POLL_S)[0])
        if adding:
            try:
                guarded.update(
                    child for child in psutil.Process(pid).children(recursive=True) if child.pid not in earlier
                )
            except psutil.NoSuchProcess:
                break
        adding = adding and not sealed
    for process in guarded:
        # psutil compares start times, so a new process with a reused number is not killed.
        if process.pid != os.getpid() and process.is_running():
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(argument) for argument in sys.argv[2:]})
