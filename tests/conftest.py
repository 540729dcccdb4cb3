"""Fixtures shared by all tests: the shared data folder (skipped where absent) and small random models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_server import KEY, HostileServer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What one test asks is not another's answer, and nobody's own cache is touched.
os.environ["DISTILL_LAB_CACHE"] = "off"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and data sets that are not part of the repository; set DISTILL_LAB_SHARED to their folder."""
    folder = Path(os.environ.get("DISTILL_LAB_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data folder here (set DISTILL_LAB_SHARED)")
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`random_model(hidden=32, layers=2, seed=0, **config)` -> directory of a random Qwen3 with the tiny tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    def build(hidden: int = 32, layers: int = 2, seed: int = 0, **config: Any) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "distill_lab" / "tiny" / "family" / "teacher")
        settings: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**(settings | config)))
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        yield running


@pytest.fixture
def openai_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and no address."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
