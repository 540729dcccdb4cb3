"""Ends the processes that a process began and left behind when it was killed (kill -9, out of memory).

    guard = Guard()          before the processes begin
    guard.seal()      after: later ones are none of its business
    guard.close()            they are gone

Libraries that compute in processes of their own (vLLM) end them when they end themselves; killed, they cannot, and the
orphans would hold the GPU's memory for ever, so that the same command could not go on. Run as a program (by `Guard`),
this file waits beside the process. POSIX systems only.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys

import psutil

LOOK_EVERY_S = 0.5


class Guard:
    """Another process that waits for the end of this one, and then ends what this one began from now on."""

    def __init__(self) -> None:
        earlier = [child.pid for child in psutil.Process().children(recursive=True)]
        command = [sys.executable, "-m", __name__, str(os.getpid()), *map(str, earlier)]
        # The same modules as here, whatever the current folder holds.
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        # A session of its own: Ctrl-C is not meant for it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True, env=os.environ | paths
        )

    def seal(self) -> None:
        """All processes to look after run by now."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def close(self) -> None:
        """They have ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def main(pid: int, earlier: set[int]) -> None:
    """Wait until the parent, process `pid`, is gone; then kill those of its descendants that are not in `earlier`."""
    begun: set[psutil.Process] = set()
    looking = True
    # Whoever reads the pipe's end may wait too long: a forked child keeps the pipe open.
    while os.getppid() == pid:
        told = bool(select.select([sys.stdin] if looking else [], [], [], LOOK_EVERY_S)[0])
        if looking:
            try:
                begun.update(
                    child for child in psutil.Process(pid).children(recursive=True) if child.pid not in earlier
                )
            except psutil.NoSuchProcess:
                break
        looking = looking and not told
    for process in begun:
        # A number that another process has by now is not this process: psutil compares when they began.
        if process.pid != os.getpid() and process.is_running():
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]), {int(argument) for argument in sys.argv[2:]})
