"""A vLLM that takes little memory, and the engine it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distill_lab.config import EngineConfig
from distill_lab.generation.engines import Engine, load_engine
from tests.vllm_models import TEACHER


@pytest.fixture(scope="session")
def vllm_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("DISTILL_LAB_CACHE", "off")
        yield


@pytest.fixture(scope="module")
def reference() -> Engine:
    return load_engine(TEACHER, EngineConfig(engine="transformers"))
