"""The error of an engine that can answer nothing more until it is loaded again."""

from __future__ import annotations

from distill_lab.errors import UserError


class EngineDeadError(UserError):
    """What computes has ended: no request is to blame, and the same command goes on where it was."""
