"""The file of the cache shared by runs, and a random model that answers some prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.types import Prompt


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's file, not yet there; the cache is on in tests that ask for it."""
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "requests.sqlite"


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    return random_model(initializer_range=0.15)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(ModelConfig(model=str(folder)), EngineConfig(engine="transformers"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (Prompt(f"p-{n}", [{"role": "user", "content": "one " * (1 + n)}]).to_json() for n in range(6)))
    return path
