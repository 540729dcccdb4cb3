"""What tests of the cache shared by runs ask it, and how they open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.jsonl import read_jsonl
from distill_lab.generation.engines import Engine
from distill_lab.generation.request_cache import RequestCache

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=2, seed=1)
MODEL, SERVER, ENGINE = ModelConfig(model="tiny:teacher"), ModelConfig(model="openai:m"), EngineConfig()


def no_engine() -> Engine:
    raise AssertionError("everything is in the cache: the engine must not be loaded")


def opened(model: ModelConfig = MODEL, config: EngineConfig = ENGINE, notes: list[str] | None = None) -> RequestCache:
    return RequestCache(model, config, on_note=[].append if notes is None else notes.append)


def rows(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = list(read_jsonl(path))
    assert len({(row["id"], row["sample"]) for row in found}) == len(found)
    return {(row["id"], row["sample"]): row for row in found}
