"""Settings of the teacher's distributions on disk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_lab.settings.base import Config


class TeacherCacheConfig(Config):
    """The teacher's distributions on disk, captured once and used by every training on the same rows."""

    mode: Literal["off", "sampled", "top_k", "hidden"] = "off"
    """off: the teacher computes in every step. sampled: draws from its distributions, which leave forward_kl unbiased, at a
    few bytes per token. top_k: its most likely tokens, for any objective, with a bias. hidden: its last hidden states,
    exact, at 2 bytes per hidden unit and token."""
    size: Annotated[int, Field(ge=0, le=254)] = 0
    """sampled: draws per token; top_k: tokens kept; 0: 64 draws, 16 tokens."""
    folder: str = ""
    """Where it is; empty: in the folder that all runs share (`distill cache` shows it)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the draws."""
