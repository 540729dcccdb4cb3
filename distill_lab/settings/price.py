"""What a server charges: settings of the engine openai_api."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from distill_lab.errors import UserError
from distill_lab.settings.base import Config

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class PriceConfig(Config):
    """What a server charges, in any currency."""

    input: Price = None
    """Price of one million prompt tokens, to show costs before and after."""
    output: Price = None
    """Price of one million tokens of answers, including thinking."""
    cached: Price = None
    """Price of one million prompt tokens that the server has in its prompt cache; None: the same as input."""
    max_cost: Price = None
    """Stop before the answers of a run, a judge's included, could cost more than this; all answers so far are kept. Short:
    --max-cost."""

    @model_validator(mode="after")
    def _check_complete(self) -> PriceConfig:
        if (self.input is None) != (self.output is None):
            raise UserError("give price.input and price.output together (0 for what is free)")
        if self.input is None and (self.cached is not None or self.max_cost is not None):
            raise UserError("price.cached and price.max_cost need price.input and price.output")
        return self

    @property
    def known(self) -> bool:
        """Whether there are prices."""
        return self.input is not None
