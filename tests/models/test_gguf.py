"""GGUF files as models: the weights of every kind of quantization, their tokenizer, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import ModelError
from distill_lab.generation.engines import chosen_engine, load_engine
from distill_lab.generation.request_cache import model_key
from distill_lab.models import hub
from distill_lab.models.loading import load_model, load_tokenizer, resolve_precision
from distill_lab.models.names import resolve
from distill_lab.train.student import train_student
from tests.helpers import make_prompts

gguf = pytest.importorskip("gguf")
HIDDEN, LAYERS = 256, 2
NAMES = {
    "embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def packed(weight: np.ndarray, kind: Any) -> tuple[np.ndarray, np.ndarray]:
    """A weight in a quantization, and what it stands for. K-quants, which the package only reads, are drawn."""
    if kind == gguf.GGMLQuantizationType.Q4_K:
        blocks = np.random.default_rng(0).integers(0, 256, (weight.shape[0], weight.shape[1] // 256, 144), np.uint8)
        scales = np.array([3e-4, 2e-3], np.float16).view(
            np.uint8
        )  # of the block's scales and minima, its first 4 bytes
        blocks[..., :4] = scales
        data = blocks.reshape(weight.shape[0], -1)
    else:
        data = gguf.quants.quantize(weight, kind)
    return data, gguf.quants.dequantize(data, kind)


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: Any) -> None:
    """The model as a GGUF file; its weights become what the quantization left of them."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in added else 1 for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "layers":
            place = f"blk.{parts[1]}.{NAMES['.'.join(parts[2:-1])]}.{parts[-1]}"
        else:
            place = f"{NAMES.get(parts[0], 'output_norm')}.{parts[-1]}"
        if weight.ndim == 1 or kind is None:
            writer.add_tensor(place, weight if weight.ndim == 1 else weight.astype(np.float16))
            stands_for = weight if weight.ndim == 1 else weight.astype(np.float16).astype(np.float32)
        else:
            data, stands_for = packed(weight, kind)
            writer.add_tensor(place, data, raw_dtype=kind)
        parameter.data = torch.from_numpy(stands_for.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tokenizer(random_model: Callable[..., Path]) -> Any:
    return AutoTokenizer.from_pretrained(random_model())


def make(tokenizer: Any, path: Path, kind: str = "F16") -> Any:
    """A random Qwen2 and the file of it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **ends)).eval()
    write_gguf(model, tokenizer, path, None if kind == "F16" else gguf.GGMLQuantizationType[kind])
    return model


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_K"])
def test_a_file_computes_what_its_weights_stand_for(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    source = make(tokenizer, path, kind)
    model, own = load_model(ModelConfig(model=str(path), dtype="fp32"))
    with torch.no_grad():
        found, expected = model(IDS).logits, source(IDS).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The tokenizer of the file: the same tokens, template and end.
    text = "two apples cost 7, and 今天 <|im_end|>"
    assert own(text)["input_ids"] == tokenizer(text)["input_ids"]
    asked = [{"role": "user", "content": "how many?"}]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    assert own.apply_chat_template(asked, **options) == tokenizer.apply_chat_template(asked, **options)
    assert own.eos_token_id == tokenizer.eos_token_id


@pytest.mark.slow
def test_it_answers_and_can_be_trained(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make(tokenizer, path)
    model = ModelConfig(model=str(path))
    assert resolve(str(path)) == str(path)
    assert resolve_precision(model).dtype != "auto"
    assert chosen_engine(model, EngineConfig()) == "transformers"
    answers = list(load_engine(model, EngineConfig()).generate(make_prompts(3), SamplingConfig(max_new_tokens=4)))
    assert len(answers) == 3
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": [{"role": "user", "content": "how many?"}], "completion": [{"role": "assistant", "content": "7"}]}
    rows.write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n in range(4)))
    train_student(model, rows, tmp_path / "student", TrainConfig(max_steps=1, max_length=256, tokens_per_batch=256))
    student, _ = load_model(ModelConfig(model=str(tmp_path / "student")))
    assert student.config.hidden_size == HIDDEN
    assert "gguf" not in (tmp_path / "student" / "config.json").read_text().lower()


def test_loading_prints_nothing(tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tokenizer, tmp_path / "model.gguf")
    load_model(ModelConfig(model=str(tmp_path / "model.gguf")))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_beside_the_file_is_taken(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make(tokenizer, path)
    before = model_key(ModelConfig(model=str(path)), EngineConfig())[1]
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    assert load_tokenizer(ModelConfig(model=str(path))).model_max_length == 77
    assert model_key(ModelConfig(model=str(path)), EngineConfig())[1] != before


def test_the_key_is_that_of_the_content(tokenizer: Any, tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.gguf", "two.gguf", "other.gguf"))
    make(tokenizer, one)
    shutil.copy(one, two)
    make(tokenizer, other, "Q8_0")
    keys = [model_key(ModelConfig(model=str(path)), EngineConfig())[1] for path in (one, two, other)]
    assert keys[0] == keys[1] != keys[2]


def test_what_cannot_be_loaded_is_named(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not one")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"broken\.gguf: cannot be loaded"):
            load(ModelConfig(model=str(broken)))
    path = tmp_path / "model.gguf"
    make(tokenizer, path)
    with pytest.raises(ModelError, match=r"GGUF.*8bit"):
        load_model(ModelConfig(model=str(path), quantization="8bit"))
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gguf"):
        load_model(ModelConfig(model=str(path)))
