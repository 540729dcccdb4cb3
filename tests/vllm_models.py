"""A vLLM for tests: settings, prompts of every task, and the comparison with another engine."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from typing import Any

import pytest

from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.generation.engines import Engine
from distill_lab.tiny.tasks import rows
from distill_lab.types import Prompt
from tests.helpers import by_id

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: run make test-vllm")
TEACHER = ModelConfig(model="tiny:teacher")
SETTINGS: dict[str, Any] = {"engine": "vllm", "max_model_len": 1024, "batch_size": 64}
GREEDY = SamplingConfig(max_new_tokens=160)
WARM = SamplingConfig(max_new_tokens=80, temperature=2.0, num_samples=3, seed=7)


def tiny_prompts(number: int) -> list[Prompt]:
    """As many of each task, of very different lengths."""
    found = []
    for task in ("instructions", "problems", "labels"):
        for place, row in enumerate(islice(rows(task, "test"), number)):
            found.append(Prompt(f"{task}-{place}", row["messages"][:1]))
    return found


def assert_same(engine: Engine, reference: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> None:
    assert by_id(engine.generate(prompts, sampling)) == by_id(reference.generate(prompts, sampling))
