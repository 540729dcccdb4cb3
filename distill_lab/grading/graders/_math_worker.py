"""Compare formulas in a separate process. In: JSON lines {"gold", "answer", "limit_s"}. Out: one line for each, in order:
{"parsed", "equal"} or {"timeout": true}.

Started by `graders/math.py`; prints {"ready": true} first, or {"error": why}. Ends when its input ends. Where fork exists, a
child does the work: it starts with everything loaded, so that a killed child is replaced in milliseconds. The formulas are
read by the parser of math-verify (Kydlíček 2025) and compared as numbers, see `Algebra.equal`; math-verify's own comparison
rounds to six decimals and is asked only if that decides nothing.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from distill_lab.types import Fields

if TYPE_CHECKING:
    from sympy import Basic, Expr, MatrixBase

    Formula: TypeAlias = Expr | MatrixBase

MAX_MEMORY = 2 << 30
"""Maximum address space of a child in bytes; if it needs more, the answer counts as not equal."""

NUM_POINTS = 5
"""Points at which formulas with variables are compared."""
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
    return Algebra().check


class Algebra:
    """Reads formulas and compares them."""

    def __init__(self) -> None:
        import math_verify
        import sympy
        from latex2sympy2_extended import latex2sympy
        from latex2sympy2_extended.latex2sympy2 import ConversionConfig

        self._sympy, self._verify, self._latex2sympy = sympy, math_verify.verify, latex2sympy
        self._config = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
        self._read_before: dict[str, Formula | None] = {}

    def check(self, gold: str, answer: str) -> dict[str, bool]:
        """Whether the answer can be read, and equals the gold answer; equations do if one is a multiple of the other."""
        if "=" in gold and "=" in answer:
            one, other = self._difference(answer), self._difference(gold)
            if one is None or other is None:
                return {"parsed": False, "equal": False}
            return {"parsed": True, "equal": self.proportional(one, other)}
        found, expected = self.read(answer), self.read(gold)
        if found is None or expected is None:
            return {"parsed": False, "equal": False}
        return {"parsed": True, "equal": self.equal(found, expected)}

    def _difference(self, equation: str) -> Expr | None:
        """The left side minus the right one; None if they cannot be read, are matrices, or are more than two."""
        from sympy import Expr

        sides = [self.read(side) for side in equation.split("=")]
        if len(sides) != 2 or sides[0] is None or sides[1] is None:
            return None
        found = sides[0] - sides[1]
        return found if isinstance(found, Expr) else None

    def read(self, latex: str) -> Formula | None:
        """The sympy expression or matrix; None for anything else."""
        from sympy import Expr, MatrixBase

        if latex not in self._read_before:
            if len(self._read_before) > 1000:
                self._read_before.clear()
            found = self._latex2sympy(latex, conversion_config=self._config)
            if isinstance(found, MatrixBase) or (isinstance(found, Expr) and not found.is_Relational):
                self._read_before[latex] = found
            else:
                self._read_before[latex] = None
        return self._read_before[latex]

    def equal(self, one: Formula, other: Formula) -> bool:
        """Whether two expressions are equal.

        Rational numbers are compared exactly. Anything else is evaluated to 50 digits, with variables at several points of
        the complex plane (the lemma of Schwartz and Zippel), and must agree there to a relative 1e-25: never to an absolute
        difference, by which all small numbers would be equal.
        """
        import sympy

        if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
            if not (isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase)):
                return False
            return one.shape == other.shape and all(map(self.equal, one.flat(), other.flat()))
        one, other = one.doit(), other.doit()
        if one == other:
            return not one.has(sympy.nan, sympy.zoo)
        if one.is_infinite or other.is_infinite:
            return False
        if one.is_Rational and other.is_Rational:
            return False  # they would be identical
        decided = self._at_points(one, other)
        if decided is not None:
            return decided
        return bool(self._verify(other, one, timeout_seconds=0)) and sympy.simplify(one - other) == 0

    def _at_points(self, one: Expr, other: Expr) -> bool | None:
        """Whether they agree at all of a few points; None if they cannot be evaluated, or are both zero."""
        symbols = sorted(one.free_symbols | other.free_symbols, key=str)
        agreed = 0
        for point in range(NUM_POINTS if symbols else 1):
            values: dict[Basic | complex, Expr | complex] = {
                symbol: self._coordinate(point, number) for number, symbol in enumerate(symbols)
            }
            first, second = (side.subs(values).evalf(50) for side in (one, other))
            if not (first.is_number and second.is_number and first.is_finite and second.is_finite):
                continue
            size = max(abs(first), abs(second))
            if size < 1e-40:
                continue
            if abs(first - second) > size * self._sympy.Float("1e-25"):
                # Floats have fewer digits: 0.1 + 0.2.
                floats = one.has(self._sympy.Float) or other.has(self._sympy.Float)
                if not floats or abs(first - second) > size * self._sympy.Float("1e-12"):
                    return False
            agreed += 1
        return True if agreed > (1 if symbols else 0) else None

    def _coordinate(self, point: int, number: int) -> Expr:
        """A fixed value for a variable: positive, negative, large and complex in turn."""
        rational = self._sympy.Rational
        real = rational(7 + 12 * number + 5 * point, 11 + 2 * number) * (1, -1, 1, -1, 1)[point]
        return real + self._sympy.I * rational(3 + number, 7) if point == 4 else real

    def proportional(self, one: Expr, other: Expr) -> bool:
        """Whether one of two expressions is a constant, not zero, times the other."""
        ratio = self._sympy.simplify(one / other)
        return bool(ratio.is_number and ratio.is_finite and ratio != 0)


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


def write_line(out: BinaryIO, what: Fields) -> None:
    """Write one JSON line."""
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
