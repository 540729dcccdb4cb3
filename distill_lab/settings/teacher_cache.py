"""Settings of the teacher's distributions on disk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from distill_lab.settings.base import Config
from distill_lab.types import JsonObject


class TeacherCacheConfig(Config):
    """The teacher's distributions on disk, captured once and used by every training on the same rows."""

    mode: Literal["off", "sampled", "top_k", "hidden", "given"] = "off"
    """off: the teacher computes in every step. sampled: draws from its distributions, which leave forward_kl unbiased, at a
    few bytes per token. top_k: its most likely tokens, for any objective, with a bias. hidden: its last hidden states,
    exact, at 2 bytes per hidden unit and token. given: what `folders` hold, whose teachers are not here."""
    size: Annotated[int, Field(ge=0, le=254)] = 0
    """sampled: draws per token; top_k: tokens kept; 0: 64 draws, 16 tokens."""
    folder: str = ""
    """Where it is; empty: in the folder that all runs share (`distill cache` shows it)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the draws."""
    folders: tuple[str, ...] = ()
    """given: one folder for each teacher, made from files of another tool; their divergences are added."""

    @model_serializer(mode="wrap")
    def _leave_out_no_folders(self, write: SerializerFunctionWrapHandler) -> JsonObject:
        """Records without folders mean none, so that results from before there were any still count."""
        values = write(self)
        if not self.folders:
            values.pop("folders", None)
        return values
