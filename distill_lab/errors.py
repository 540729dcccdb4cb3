"""Errors the user can fix. Each message says where the problem is and how to fix it; the CLI prints it and exits with 2."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong usage or bad input. `str(error)` says what is wrong, where, and what to do instead."""


class DataError(UserError):
    """A malformed row or file; has the source, the 1-based line (or row) and the reason."""

    def __init__(self, source: str, line: int | None, reason: str) -> None:
        self.source, self.line, self.reason = source, line, reason
        place = source if line is None else f"{source}:{line}"
        super().__init__(f"{place}: {reason}")


class ModelError(UserError):
    """A model that cannot be found or loaded; has its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class NoData(UserError):
    """The selected data contains no rows."""


class EngineDeadError(UserError):
    """The engine's process has died. No request caused it; the same command resumes where it stopped."""
