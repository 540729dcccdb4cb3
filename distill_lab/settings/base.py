"""The base class of all settings, the type of a random seed, and the context for settings that are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from distill_lab.errors import UserError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A random seed, as numpy and torch take them."""
AS_GIVEN = "as given"
"""Context of `model_dump` for settings that others will be merged into: keeps None for defaults that depend on other
settings, and keys, which no file has."""
MAX_COUNT = 10**12
"""Largest whole number in any setting: more rows, tokens or bytes than any machine has."""


class Config(BaseModel):
    """Base class of all settings: frozen; unknown keys, numbers without end and text that is not printable are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_sense(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_COUNT:
            raise UserError(f"must be between -{MAX_COUNT:,} and {MAX_COUNT:,}")
        if isinstance(value, (str, Path)) and "\0" in str(value):
            raise UserError("contains a zero byte, which no text or path can have")
        return value
