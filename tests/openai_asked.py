"""An engine for servers that does not wait long, and what a test asks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from distill_lab.config import EngineConfig, SamplingConfig
from distill_lab.generation.engines.openai_api import OpenAIEngine
from distill_lab.types import Completion
from tests.hostile_server import KEY, HostileServer, prompts

T = TypeVar("T")
SAMPLING = SamplingConfig(max_new_tokens=7)


def engine(server: HostileServer, **settings: Any) -> OpenAIEngine:
    """An engine that does not wait long."""
    config = EngineConfig(**{"max_retries": 3, "max_concurrency": 8, "base_url": server.url, **settings})
    return OpenAIEngine("m", config, base_url=config.base_url, key=KEY, first_wait_s=0.01)


def collect(items: Iterable[T], into: list[T]) -> None:
    """What came before an error stays in `into`."""
    for item in items:
        into.append(item)


def ask(asked: OpenAIEngine, texts: Sequence[str | int], sampling: SamplingConfig = SAMPLING) -> dict[str, Completion]:
    found = list(asked.generate(prompts(*texts), sampling))
    assert Counter(row.id for row in found) == Counter({f"p-{text}": sampling.num_samples for text in texts})
    return {row.id.removeprefix("p-"): row for row in found}
