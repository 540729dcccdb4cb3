"""Run a Python module in a separate process that answers JSON lines with JSON lines, and kill it if it takes too long.

    helper = Helper("distill_lab.grading.graders._math_worker")
    helper.ask({"gold": "...", "answer": "..."}, limit_s=2.5)    -> its answer, or None if there was none in time

The process stays for the next question. Any thread may ask; questions are queued. The process ends when this one ends, in
whatever way, because its input is then closed. The module enforces the limit itself if it can (`limit_s` is part of each
question); a module that does not answer shortly after the limit is killed and restarted.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from distill_lab.errors import UserError
from distill_lab.types import JsonObject

START_LIMIT_S = 120.0
"""Maximum seconds for a process to become ready."""
GRACE_S = 0.25
"""Seconds to wait for an answer beyond its limit."""


class _Process:
    """One process that runs a module."""

    def __init__(self, module: str) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Import the same modules as here, not a file math.py in the current folder.
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        )
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._ready = False
        Thread(target=self._read, name=f"{module} reader", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while reading
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def ask(self, question: JsonObject, *, limit_s: float) -> dict[str, bool] | None:
        """The answer; None if it did not arrive in time or the process died."""
        self.wait_until_ready()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question | {"limit_s": limit_s}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=limit_s + GRACE_S)
        except (Empty, OSError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def wait_until_ready(self) -> None:
        """Wait for the module's greeting, once. Raises UserError if it cannot start."""
        if self._ready:
            return
        try:
            line = self._lines.get(timeout=START_LIMIT_S)
        except Empty:
            line = b""
        greeting = json.loads(line) if line else {"error": "it did not start"}
        if "error" in greeting:
            raise UserError(f"the grader's process failed to start: {greeting['error']}")
        self._ready = True

    def kill(self) -> None:
        """End the process now and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Helper:
    """A module that answers questions; the first question starts its process."""

    def __init__(self, module: str) -> None:
        self._module, self._lock, self._owner = module, Lock(), 0
        self._process: _Process | None = None

    def ask(self, question: JsonObject, *, limit_s: float) -> dict[str, bool] | None:
        """The module's answer; None if there was none in time. Raises UserError if it cannot start."""
        with self._lock:
            process, answer = self._started(), None
            try:
                answer = process.ask(question, limit_s=limit_s)
            finally:
                # Also after Ctrl-C, so that a late answer is not mistaken for the answer to the next question.
                if answer is None:
                    self.close()
            return answer

    def start(self) -> None:
        """Start the process and wait until it is ready, so that a deadline for several questions does not pay for it."""
        with self._lock:
            process = self._started()
            try:
                process.wait_until_ready()
            except BaseException:
                self.close()
                raise

    def _started(self) -> _Process:
        if self._owner != os.getpid():  # the first question, or after a fork, where the process is our parent's
            self._process, self._owner = None, os.getpid()
            atexit.register(self.close)
        if self._process is None:
            self._process = _Process(self._module)
        return self._process

    def close(self) -> None:
        """End the process; the next question starts a new one."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
        self._process = None
