"""GGUF files: every weight and every token is in its place, llama.cpp answers as the student does, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.export import Options
from distill_lab.export import gguf as target
from distill_lab.export._gguf_vocab import pre_tokenizer
from distill_lab.export._gguf_weights import check_convertible, unpacked, write_gguf
from distill_lab.models.loading import load_model
from distill_lab.tiny import FAMILY

gguf = pytest.importorskip("gguf")
IDS = torch.tensor([[5, 6, 7, 8, 9, 200, 300]])
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
KINDS: dict[str, Any] = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}


def model_in(folder: Path, kind: str = "qwen2", *, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A random model with every bias and norm drawn, and the tiny family's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "student")
    maker, settings = KINDS[kind]
    more = {"head_dim": 32} if kind == "qwen3" else {}
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    torch.manual_seed(0)
    model = maker(settings(vocab_size=len(tokenizer) + 8, **(SIZES | more | {"rope_parameters": rope} | config)))
    for weight in model.parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=0.5)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_computes_what_the_student_does(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model", kind, tie_word_embeddings=tied)
    source, _ = load_model(ModelConfig(model=str(folder), dtype="fp32"))
    expected = source(input_ids=IDS).logits
    for packing, error in (("F16", 2e-3), ("Q8_0", 0.15)):
        path = tmp_path / f"{packing}.gguf"
        write_gguf(folder, path, packing, name="a student")
        again = unpacked(path, folder)
        torch.testing.assert_close(again(input_ids=IDS).logits, expected, rtol=0, atol=error)
        names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
        assert ("output.weight" in names) is not tied


def test_a_file_says_what_llama_cpp_has_to_know(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model", "qwen3", tie_word_embeddings=True)
    write_gguf(folder, tmp_path / "x.gguf", "Q8_0", name="a student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = fields(tmp_path / "x.gguf")
    assert found["general.architecture"] == "qwen3"
    assert found["general.name"] == "a student"
    assert (found["qwen3.rope.freq_base"], found["qwen3.attention.key_length"]) == (500_000.0, 32)
    assert (found["qwen3.attention.head_count"], found["qwen3.attention.head_count_kv"]) == (4, 2)
    assert found["qwen3.context_length"] == 512
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found["tokenizer.ggml.pre"] == "smollm"
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(tokenizer) + 8
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    by_text = dict(zip(tokens, kinds, strict=True))
    assert (by_text["<|im_end|>"], by_text["<think>"], by_text["a"], kinds[-1]) == (3, 4, 1, 5)


def test_a_token_that_looks_like_control_is_no_text(tmp_path: Path) -> None:
    """Qwen2.5's tokens for the middle of a text are not marked as special, and llama.cpp would show them."""
    folder = model_in(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {"<|fim_pad|>": 3, "<\uff5cend\uff5c>": 3, "<pad>": 3, "<tool_call>": 4, "a <|b|>": 4}
    assert tokenizer.add_tokens(list(expected)) == len(expected)
    assert not set(expected) & set(tokenizer.all_special_tokens)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, tmp_path / "x.gguf", "F16", name="x")
    found = fields(tmp_path / "x.gguf")
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert {text: kinds[text] for text in expected} == expected


def test_yarn_and_several_files_of_weights_in_bf16(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
    folder = model_in(tmp_path / "model", rope_parameters=rope, tie_word_embeddings=False, dtype=torch.bfloat16)
    model, _ = load_model(ModelConfig(model=str(folder), dtype="bf16"))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    write_gguf(folder, tmp_path / "x.gguf", "F16", name="x")
    found = fields(tmp_path / "x.gguf")
    assert (found["qwen2.rope.scaling.type"], found["qwen2.rope.scaling.factor"]) == ("yarn", 4.0)
    assert found["qwen2.rope.scaling.original_context_length"] == 128
    again = unpacked(tmp_path / "x.gguf", folder).state_dict()
    for name, weight in model.state_dict().items():
        # The weights are near 1: bf16 has fewer digits than fp16, and nothing is lost.
        torch.testing.assert_close(again[name], weight.float(), rtol=0, atol=1e-7, msg=name)


def test_what_is_not_converted_is_named_with_the_remedy(tmp_path: Path) -> None:
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=64, **SIZES))
    llama.save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match=r"it is a llama model, .*convert_hf_to_gguf\.py"):
        check_convertible(tmp_path / "llama")
    good = model_in(tmp_path / "good", "qwen3")
    for setting, reason in (
        ({"use_sliding_window": True}, "sliding window"),
        ({"quantization_config": {"bits": 4}}, "weights are quantized"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "scaled by longrope"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "by no factor"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by dynamic"),
    ):
        folder = tmp_path / reason
        shutil.copytree(good, folder)
        config = json.loads((folder / "config.json").read_text()) | setting
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=reason):
            check_convertible(folder)


def test_damaged_weights_are_refused_before_anybody_opens_the_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model_in(tmp_path / "model", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for value, kind, message in ((1e5, "F16", "beyond 65504"), (float("nan"), "Q8_0", "not a number")):
        changed = weights | {name: torch.full_like(weights[name], value)}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"up_proj.*{message}"):
            write_gguf(folder, tmp_path / "x.gguf", kind, name="x")
    for changed, message in (
        ({key: value for key, value in weights.items() if key != name}, r"1 weights are missing \(blk\.1\.ffn_up"),
        (weights | {"model.layers.0.extra.weight": torch.zeros(2)}, "extra.weight has no place"),
    ):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            write_gguf(folder, tmp_path / "x.gguf", "F16", name="x")


def test_how_text_is_split_before_merges_has_a_name_or_is_refused(shared_data: Path) -> None:
    found = {}
    for name in ("qwen2.5", "qwen3", "gpt-neox-20b"):
        backend = json.loads((shared_data / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8"))
        found[name] = pre_tokenizer(backend, name)
    assert found == {"qwen2.5": "qwen2", "qwen3": "qwen2", "gpt-neox-20b": "gpt-2"}


@pytest.mark.parametrize(
    "steps",
    [
        {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Removed", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "Metaspace"},
        None,
    ],
)
def test_an_unknown_way_to_split_text_is_refused(steps: Any) -> None:
    with pytest.raises(UserError, match="a student: its tokenizer splits text"):
        pre_tokenizer({"pre_tokenizer": steps}, "a student")


def test_types_are_spelled_as_llama_cpp_does_and_unknown_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target.canonical(("q8_0", "Q4_k_m", "Q8_0")) == ("Q8_0", "Q4_K_M")
    for types, message in ((("Q9",), "choose from F16, Q8_0, Q4_K_M"), ((), "at least one")):
        with pytest.raises(UserError, match=message):
            target.canonical(types)
    monkeypatch.setattr(target, "quantizer", lambda: None)
    target.check(Options(types=("F16", "Q8_0")))
    with pytest.raises(UserError, match=r"Q4_K_M: written by llama\.cpp's quantizer, .*pip install"):
        target.check(Options(types=("Q8_0", "Q4_K_M")))


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model", intermediate_size=72)
    write_gguf(folder, tmp_path / "x.gguf", "Q8_0", name="x")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")
    assert (kinds["blk.0.attn_norm.weight"], kinds["blk.0.attn_q.bias"]) == ("F32", "F32")
    assert np.isfinite(unpacked(tmp_path / "x.gguf", folder)(input_ids=IDS).logits.numpy()).all()
