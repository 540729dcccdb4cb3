"""Settings of standard benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.settings.base import Config


class SuiteConfig(Config):
    """Standard benchmarks of lm-evaluation-harness, in place of --data."""

    name: str = ""
    """gsm8k, math500, ifeval, mmlu, bbh or any other task or group of lm_eval; a file (task.yaml) or folder with your
    own tasks; several with commas between them."""
    chat: bool | None = None
    """Ask in the model's chat template, few-shot examples as turns; off: the text as it is, as base models are asked. None:
    the chat template if the model has one."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; None: as the task says. Tasks that are made for none get none."""
    metric: str = ""
    """The metric that becomes the score: exact_match, or with its filter exact_match,flexible-extract; empty: the first of
    the task that is a number from 0 to 1 for each item."""
    rows: Path | None = None
    """The training set, to say which items the model was trained on; None: the one of the run that the model is from."""
