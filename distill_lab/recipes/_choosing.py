"""Settings of the recipes that may train on some prompts only: those that the student solves in some of its samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from distill_lab.config import RecipeConfig
from distill_lab.errors import UserError
from distill_lab.pipeline.choosing import ChoosePrompts, PassRate


class PromptChoiceConfig(RecipeConfig):
    """Which prompts are trained on."""

    choose_prompts: ChoosePrompts = "all"
    """pass_rate: only prompts that the student solves in some of its samples, but not in all, which needs gold answers;
    random: as many prompts, drawn at random, as a control."""
    min_pass_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Prompts that a smaller share of the student's samples solves are too hard."""
    max_pass_rate: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Prompts that a larger share solves are too easy."""
    pass_rate_samples: Annotated[int, Field(ge=2, le=1000)] = 8
    """Samples of the student for each prompt."""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> PromptChoiceConfig:
        if self.min_pass_rate > self.max_pass_rate:
            raise UserError(
                f"min_pass_rate {self.min_pass_rate:g} is above max_pass_rate {self.max_pass_rate:g}: no prompt is left"
            )
        return self

    def pass_rate(self, *, threshold: float = 1.0) -> PassRate:
        """The choice; threshold: the grade from which a sample passes."""
        return PassRate(self.choose_prompts, self.min_pass_rate, self.max_pass_rate, self.pass_rate_samples, threshold)
