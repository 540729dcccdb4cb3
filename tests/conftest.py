"""Fixtures shared by all tests: the shared data folder (skipped where absent) and small random models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hostile_server import KEY, HostileServer

if TYPE_CHECKING:
    from distill_lab.config import ModelConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What one test asks is not another's answer, and nobody's own cache is touched.
os.environ["DISTILL_LAB_CACHE"] = "off"

ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
BUDGET_S = float(os.environ.get("DISTILL_LAB_TEST_BUDGET_S") or "inf")
"""Seconds after which no further slow test begins."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a budget, what is slow comes last."""
    if float("inf") > BUDGET_S:
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out, and say so, what the budget has no room for."""
    if time.monotonic() - STARTED > BUDGET_S and item.get_closest_marker("slow"):
        pytest.skip(f"NOT RUN, no time left of {BUDGET_S:.0f} s: {item.path.relative_to(ROOT)}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and data sets that are not part of the repository; set DISTILL_LAB_SHARED to their folder."""
    folder = Path(os.environ.get("DISTILL_LAB_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data folder here (set DISTILL_LAB_SHARED)")
    return folder


@pytest.fixture(scope="module")
def load(shared_data: Path) -> Any:
    """`load("qwen3")` -> that tokenizer; "tiny" is the lab's own."""
    from transformers import AutoTokenizer

    loaded: dict[str, Any] = {}

    def tokenizer(name: str) -> Any:
        if name not in loaded:
            family = ROOT / "distill_lab" / "tiny" / "family"
            folder = family / "teacher" if name == "tiny" else shared_data / "tokenizers" / name
            loaded[name] = AutoTokenizer.from_pretrained(folder)
        return loaded[name]

    return tokenizer


@pytest.fixture(scope="module")
def with_template(shared_data: Path) -> Any:
    """The smallest real tokenizer with another model's template and the special tokens that template writes."""
    from transformers import PreTrainedTokenizerFast

    special = {
        "deepseekv3": ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"],
        "gemma3": ["<end_of_turn>", "<start_of_turn>"],
        "llama3": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "llama3_1": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "phi3": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
    }

    def tokenizer(template: str) -> Any:
        made = PreTrainedTokenizerFast.from_pretrained(shared_data / "tokenizers" / "minimind")
        made.add_special_tokens({"bos_token": "<s>"})
        if template in special:
            made.add_special_tokens({"additional_special_tokens": special[template]})
            made.eos_token = special[template][0]
        made.chat_template = (shared_data / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
        return made

    return tokenizer


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


@pytest.fixture(params=["tied", "untied", "Gemma2", "Granite", "Cohere"])
def any_head(request: pytest.FixtureRequest, random_model: Callable[..., Path], tmp_path: Path) -> ModelConfig:
    """A student whose logits are its head's, or those scaled (Granite, Cohere) or soft-capped (Gemma2)."""
    from distill_lab.config import ModelConfig

    qwen = random_model(hidden=32, layers=1, tie_word_embeddings=request.param != "untied")
    if request.param in ("tied", "untied"):
        return ModelConfig(model=str(qwen))
    settings: dict[str, Any] = {
        "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16, "query_pre_attn_scalar": 16},
        "Granite": {"logits_scaling": 0.25, "embedding_multiplier": 3.0},
        "Cohere": {"logit_scale": 5.0},
    }[request.param]
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, **settings,
    )  # fmt: skip
    getattr(transformers, f"{request.param}ForCausalLM")(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return ModelConfig(model=str(tmp_path / "model"))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        yield running


@pytest.fixture
def openai_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, no address, and nothing remembered of a server that had this address before."""
    from distill_lab.generation.engines._dialect import remembered

    remembered.cache_clear()
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
