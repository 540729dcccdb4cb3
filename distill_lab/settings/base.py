"""The base class of all settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base class of all settings: frozen; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
