"""A Python module in a process of its own that answers one JSON line with another, killed when it takes too long.

    helper = Helper("distill_lab.grading.graders._math_worker")
    helper.ask({"gold": "...", "answer": "..."}, limit_s=2.5)    -> its answer, or None when there was none in time

The process stays for the next question. Any thread may ask; questions wait for one another. The process ends when this
one does, however that ends, since its input is closed then. The module keeps to the limit itself where it can (`limit_s`
comes with each question); what does not answer even a little later is killed from here and started anew.
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
from typing import Any

from distill_lab.errors import UserError

START_LIMIT_S = 120.0
"""Longest that a process may take to say that it is ready."""
GRACE_S = 0.25
"""So much later than its limit an answer may come."""


class _Process:
    """One such process."""

    def __init__(self, module: str) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The same modules as here; a file math.py in the current folder is not one of them.
            env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        )
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._ready = False
        Thread(target=self._read, name=f"{module} reader", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed under our hands
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(b"")

    def ask(self, question: dict[str, Any], *, limit_s: float) -> dict[str, Any] | None:
        """The answer; None where it did not come in time, or the process died over it."""
        if not self._ready:
            self._wait_until_ready()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question | {"limit_s": limit_s}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=limit_s + GRACE_S)
        except (Empty, OSError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def _wait_until_ready(self) -> None:
        try:
            line = self._lines.get(timeout=START_LIMIT_S)
        except Empty:
            line = b""
        greeting = json.loads(line) if line else {"error": "it did not start"}
        if "error" in greeting:
            raise UserError(f"the grader's process cannot work: {greeting['error']}")
        self._ready = True

    def kill(self) -> None:
        """End it now and leave nothing behind."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Helper:
    """A module that answers questions, and its process, which is started by the first one."""

    def __init__(self, module: str) -> None:
        self._module, self._lock, self._owner = module, Lock(), 0
        self._process: _Process | None = None

    def ask(self, question: dict[str, Any], *, limit_s: float) -> dict[str, Any] | None:
        """The module's answer; None where there was none in time. Raises UserError where it cannot start."""
        with self._lock:
            if self._owner != os.getpid():  # the first question, or a fork, whose process is our parent's
                self._process, self._owner = None, os.getpid()
                atexit.register(self.close)
            if self._process is None:
                self._process = _Process(self._module)
            answer = None
            try:
                answer = self._process.ask(question, limit_s=limit_s)
            finally:
                # Also after Ctrl-C: an answer that comes late must not be taken for the next question's.
                if answer is None:
                    self.close()
            return answer

    def close(self) -> None:
        """End the process; the next question starts one again."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
        self._process = None
