"""Saved students as other tools read them: rotary base, end tokens, tokenizer files, sampling defaults, tied heads.

tests/interop/ loads such students in transformers 4 and converts them with llama.cpp's script.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
)

from distill_lab.config import LoraConfig, ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.tiny import FAMILY
from distill_lab.train.lora import merge_directory
from distill_lab.train.portable import with_old_names
from distill_lab.train.student import train_student
from tests.helpers import base_model, toy_rows

pytestmark = pytest.mark.slow

SHORT = TrainConfig(learning_rate=1e-3, tokens_per_batch=128, max_steps=2, logging_steps=1, validation_fraction=0)
ADAPTERS = SHORT.model_copy(update={"lora": LoraConfig(r=4)})
IDS = torch.arange(5, 45)[None]
BASE = 1_000_000.0
"""Qwen2.5's and Qwen3's rotary base. Readers that miss it take 10,000, which is the tiny family's."""
YARN = {"rope_type": "yarn", "rope_theta": BASE, "factor": 4.0, "original_max_position_embeddings": 256}


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    write_jsonl(path, toy_rows())
    return path


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("way", ["full", "merged", "merged later"])
@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": BASE}, YARN], ids=["plain", "yarn"])
def test_the_rotary_base_stands_where_transformers_4_looks(
    random_model: Callable[..., Path], rows: Path, tmp_path: Path, way: str, rope: dict[str, Any]
) -> None:
    student = ModelConfig(model=str(random_model(rope_parameters=dict(rope))))
    out = tmp_path / "student"
    if way == "full":
        train_student(student, rows, out, SHORT)
    elif way == "merged":
        train_student(student, rows, out, SHORT.model_copy(update={"lora": LoraConfig(r=4, merge=True)}))
    else:
        train_student(student, rows, tmp_path / "adapters", ADAPTERS)
        merge_directory(ModelConfig(model=str(tmp_path / "adapters")), out)
    config = read(out, "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == BASE
    assert config["torch_dtype"] == config["dtype"] == "float32"
    if rope is YARN:
        assert config["rope_scaling"]["rope_type"] == config["rope_scaling"]["type"] == "yarn"
        assert config["rope_scaling"]["factor"] == 4.0
        assert config["rope_scaling"]["original_max_position_embeddings"] == 256
    else:
        assert not config.get("rope_scaling")
    # transformers 5 reads what it read before.
    again = AutoModelForCausalLM.from_pretrained(out).config.rope_parameters
    assert {name: value for name, value in again.items() if name != "type"} == rope


WIDTHS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHORT_AND_LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 4096}
GEMMA = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": BASE},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
LLAMA = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Qwen2Config(**WIDTHS, rope_parameters={"rope_theta": BASE, "rope_type": "default"}), {"rope_theta": BASE}),
        (
            Gemma3TextConfig(**WIDTHS, head_dim=16, rope_parameters=GEMMA),
            {
                "rope_theta": BASE,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0},
            },
        ),
        (
            LlamaConfig(**WIDTHS, rope_parameters={**LLAMA, "original_max_position_embeddings": 1024}),
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    **{name: value for name, value in LLAMA.items() if name != "rope_theta"},
                    "type": "llama3",
                    "original_max_position_embeddings": 1024,
                },
            },
        ),
        (
            Phi3Config(
                **WIDTHS,
                pad_token_id=0,
                original_max_position_embeddings=4096,
                max_position_embeddings=8192,
                rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **SHORT_AND_LONG},
            ),
            # Phi-3 in transformers 4 refuses any other name here.
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
        ),
        (
            GPTNeoXConfig(
                **WIDTHS, rope_parameters={"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.5}
            ),
            {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
        ),
        (Qwen3MoeConfig(**WIDTHS, num_experts=4), {"num_experts": 4, "rope_theta": 10000.0}),
    ],
    ids=lambda value: value.model_type if hasattr(value, "model_type") else "",
)
def test_every_kind_of_rotary_embedding_has_its_old_names(config: Any, expected: dict[str, Any]) -> None:
    settings = json.loads(config.to_json_string(use_diff=False))
    both = with_old_names(settings)
    assert {name: both.get(name) for name in expected} == expected
    again, before = (type(config).from_dict(dict(each)).rope_parameters for each in (both, settings))
    for rope in (again, *again.values()):
        if isinstance(rope, dict):
            rope.pop("type", None)
    assert again == before


@pytest.mark.parametrize("way", ["full", "adapters", "merged"])
def test_the_end_of_turn_ends_the_text_of_a_trained_base_model(rows: Path, tmp_path: Path, way: str) -> None:
    base, out = base_model(tmp_path / "base"), tmp_path / "student"
    config = {"full": SHORT, "adapters": ADAPTERS}.get(way) or SHORT.model_copy(
        update={"lora": LoraConfig(r=4, merge=True)}
    )
    train_student(base, rows, out, config)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    generation = read(out, "generation_config.json")
    assert generation["eos_token_id"] == [turn, text]
    assert generation["pad_token_id"] == text
    if way != "adapters":
        assert read(out, "config.json")["eos_token_id"] == turn


def test_sampling_defaults_of_the_base_are_kept(rows: Path, tmp_path: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    train_student(base_model(tmp_path / "base", **sampling), rows, tmp_path / "student", SHORT)
    generation = read(tmp_path / "student", "generation_config.json")
    assert {name: generation[name] for name in sampling} == sampling
    assert "_from_model_config" not in generation


def test_a_tokenizer_that_pads_with_its_end_gets_another_padding(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(FAMILY / "student", folder)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        settings = read(folder, name)
        settings.update(pad_token="<|im_end|>") if "tokenizer" in name else settings.update(pad_token_id=1277)
        (folder / name).write_text(json.dumps(settings))
    train_student(ModelConfig(model=str(folder)), rows, tmp_path / "student", SHORT)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == 1277
    assert read(tmp_path / "student", "generation_config.json")["pad_token_id"] == tokenizer.pad_token_id


def test_tokenizer_files_of_the_tiny_family_and_of_its_students(rows: Path, tmp_path: Path) -> None:
    train_student(ModelConfig(model="tiny:student"), rows, tmp_path / "student", SHORT)
    for folder in (tmp_path / "student", FAMILY / "student", FAMILY / "teacher"):
        settings = read(folder, "tokenizer_config.json")
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert settings["chat_template"] == (folder / "chat_template.jinja").read_text(encoding="utf-8")
        assert not {"backend", "is_local", "local_files_only"} & settings.keys()
    # A template that is changed for the student is changed in both places.
    train_student(ModelConfig(model="tiny:student"), rows, tmp_path / "at once", SHORT, thinking=False)
    settings = read(tmp_path / "at once", "tokenizer_config.json")
    assert settings["chat_template"] == (tmp_path / "at once" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "enable_thinking = false" in settings["chat_template"]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_tokenizer_files_of_qwen(
    shared_data: Path, random_model: Callable[..., Path], rows: Path, tmp_path: Path, name: str
) -> None:
    original = shared_data / "tokenizers" / name
    folder = tmp_path / "base"
    shutil.copytree(random_model(vocab_size=151_936, hidden=16), folder)
    (folder / "chat_template.jinja").unlink()
    shutil.copytree(original, folder, dirs_exist_ok=True)
    out = tmp_path / "student"
    train_student(ModelConfig(model=str(folder)), rows, out, SHORT)
    base, saved = read(original, "tokenizer_config.json"), read(out, "tokenizer_config.json")
    assert {key: value for key, value in base.items() if saved.get(key) != value} == {}
    assert saved.keys() == base.keys()
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == base["chat_template"]
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(original)
    text = "<|im_start|>user\n12 apples, naïve 漢字\n\n\tdef f():<|im_end|>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.all_special_tokens == theirs.all_special_tokens


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}], ids=str
)
def test_adapters_on_a_tied_head_are_merged_into_the_head_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, tokenizer = load_model(ModelConfig(model="tiny:student"))
    torch.manual_seed(0)
    adapted: Any = get_peft_model(model, PeftLoraConfig(r=4, lora_alpha=32, init_lora_weights=False, **settings))
    adapted.peft_config["default"].base_model_name_or_path = str(FAMILY / "student")
    with torch.inference_mode():
        expected = adapted.eval()(input_ids=IDS, use_cache=False).logits
    adapted.save_pretrained(tmp_path / "adapters", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapters")
    adapter = ModelConfig(model=str(tmp_path / "adapters"))
    merge_directory(adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)
    assert read(tmp_path / "merged", "config.json")["tie_word_embeddings"] is False
    loaded, _ = load_model(adapter)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(input_ids=IDS, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_other_adapters_leave_a_head_tied(rows: Path, tmp_path: Path) -> None:
    train_student(ModelConfig(model="tiny:student"), rows, tmp_path / "adapters", ADAPTERS)
    merge_directory(ModelConfig(model=str(tmp_path / "adapters")), tmp_path / "merged")
    assert read(tmp_path / "merged", "config.json")["tie_word_embeddings"] is True


def test_the_output_head_is_refused_as_a_target_by_name(rows: Path, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"lora": LoraConfig(r=4, targets=("q_proj", "lm_head"))})
    with pytest.raises(UserError, match=r"lora\.targets: lm_head is the output head"):
        train_student(ModelConfig(model="tiny:student"), rows, tmp_path / "student", config)
