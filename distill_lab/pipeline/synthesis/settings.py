"""Settings of a job that makes data from data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from distill_lab.config import Config, DataConfig, EngineConfig, ModelConfig, SamplingConfig
from distill_lab.settings.base import Seed
from distill_lab.settings.overlap import OverlapWords


class SynthesisConfig(Config):
    """Settings of every job; those that only some jobs use say which."""

    model: ModelConfig
    """The model that writes or rates."""
    data: DataConfig
    """The rows to start from."""
    template: Path | None = None
    """A text file with your own request; docs/synthesize.md lists its places. Default: the lab's."""
    num_rows: Annotated[int, Field(ge=1)] = 100
    """expand: new instructions wanted."""
    num_shown: Annotated[int, Field(ge=1, le=100)] = 3
    """expand: rows of the data shown as examples in each request."""
    kind: Literal["auto", "cot", "answer"] = "auto"
    """rate: reasoning (cot) or answers to instructions; auto: cot if all rows have thinking, answer if no row has."""
    min_rating: tuple[str, ...] = ()
    """rate: minimum ratings of the rows to keep, as NAME=NUMBER: helpfulness=6 correctness=1."""
    repeat: bool = False
    """balance: repeat rows of rare types until they have their share."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 2
    """Further rounds for answers that cannot be read, with other seeds; in expand for instructions that are missing."""
    seed: Seed = 0
    """Random seed of the examples that expand shows and of the rows that balance takes."""
    form: Literal["messages", "instruction"] = "messages"
    """Rows as the lab's messages, or as {"instruction", "output"} (Alpaca, EasyDistill). All recipes read both."""
    test: DataConfig = DataConfig(path="")
    """Test data that nothing may overlap with: neither the rows to start from nor the new ones."""
    overlap_words: OverlapWords = 8
    """Words in a row that count as overlap with the test; with 0, near duplicates among new instructions stay, too."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=2048)
    """How to sample the answers; greedy by default, and at temperature 0.7 or more in a further round."""
    engine: EngineConfig = EngineConfig()
    """Which engine generates."""


RETRY_TEMPERATURE = 0.7
"""For retries, because a model that decodes greedily would write the same again."""
