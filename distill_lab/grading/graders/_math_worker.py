"""Run math-verify in a separate process. In: JSON lines {"gold", "answer", "limit_s"}. Out: one line for each, in order:
{"parsed", "equal"} or {"timeout": true}.

Started by `graders/math.py`; prints {"ready": true} first, or {"error": why}. Ends when its input ends. Where fork exists, a
child does the work: it starts with everything loaded, so that a killed child is replaced in milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_MEMORY = 2 << 30
"""Maximum address space of a child in bytes; if it needs more, the answer counts as not equal."""

Check = Callable[[str, str], dict[str, bool]]


def main() -> None:
    """Answer questions until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C and ends this one
    logging.disable()
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    try:
        check = load()
    except ImportError as error:
        write_line(out, {"error": f"{error}; pip install math-verify"})
        return
    check(r"\frac{1}{2}", "0.5")  # builds its tables now, before any time limit runs
    write_line(out, {"ready": True})
    child = Child(check) if os.name == "posix" else None
    for line in sys.stdin.buffer:
        write_line(out, child.answer(line) if child else answer(check, line))


def load() -> Check:
    """Return `check(gold, answer) -> {"parsed", "equal"}`. Raises ImportError without math-verify."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> Any:
        return parse(f"${text}$", targets, fallback_mode="no_fallback", parsing_timeout=0)

    def check(gold: str, answer: str) -> dict[str, bool]:
        found = read(answer)
        return {"parsed": bool(found), "equal": bool(found) and bool(verify(read(gold), found, timeout_seconds=0))}

    return check


def answer(check: Check, line: bytes) -> dict[str, bool]:
    """The verdict for one question."""
    question = json.loads(line)
    try:
        return check(question["gold"], question["answer"])
    except (Exception, RecursionError, MemoryError):
        # If sympy fails on hostile input, the answer is not proven correct.
        return {"parsed": False, "equal": False}


class Child:
    """A fork of this process that answers questions."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._fork()

    def _fork(self) -> None:
        import resource

        (question_in, question_out), (answer_in, answer_out) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(question_in)
            os.close(answer_out)
            self._to, self._from = os.fdopen(question_out, "wb"), os.fdopen(answer_in, "rb")
            return
        os.close(question_out)
        os.close(answer_in)
        os.close(0)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, hard))
        out = os.fdopen(answer_out, "wb")
        for line in os.fdopen(question_in, "rb"):
            # Ends this child if the parent is gone.
            signal.setitimer(signal.ITIMER_REAL, json.loads(line)["limit_s"] + 1)
            write_line(out, answer(self._check, line))
            signal.setitimer(signal.ITIMER_REAL, 0)
        os._exit(0)

    def answer(self, line: bytes) -> dict[str, bool]:
        """The verdict; replaces a child that takes too long or dies."""
        try:
            self._to.write(line)
            self._to.flush()
            ready, _, _ = select.select([self._from], [], [], json.loads(line)["limit_s"])
            found = self._from.readline() if ready else b""
        except BrokenPipeError:
            ready, found = [self], b""
        if found:
            return json.loads(found)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except BrokenPipeError:
                continue
        self._fork()
        return {"parsed": False, "equal": False} if ready else {"timeout": True}


def write_line(out: BinaryIO, what: dict[str, Any]) -> None:
    """Write one JSON line."""
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
