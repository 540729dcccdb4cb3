"""Errors the user can mend. Each message names the place and the remedy; the faces print it and exit with 2."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong usage or bad input. `str(error)` is complete: what is wrong, where, and what to do instead."""


class DataError(UserError):
    """A malformed row or file: carries the source, the 1-based line (or row) and the reason."""

    def __init__(self, source: str, line: int | None, reason: str) -> None:
        self.source, self.line, self.reason = source, line, reason
        place = source if line is None else f"{source}:{line}"
        super().__init__(f"{place}: {reason}")


class ModelError(UserError):
    """A model that cannot be found or loaded: carries its name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class NoData(UserError):
    """A selection that holds no rows at all."""


class EngineDeadError(UserError):
    """What computes has ended: no request is to blame, and the same command goes on where it was."""
