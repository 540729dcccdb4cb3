"""The setting that keeps training apart from the test."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from distill_lab.errors import UserError


def _check(number: int) -> int:
    if 0 < number < 3:
        raise UserError(f"overlap_words {number} leaves out nearly all prompts; give at least 3, or 0 to turn it off")
    return number


OverlapWords = Annotated[int, Field(ge=0), AfterValidator(_check)]
"""Words in a row that training may not share with a test prompt; 0: any number."""
