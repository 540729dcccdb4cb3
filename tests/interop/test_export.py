"""Exported GGUF files as strangers read them: llama.cpp's own converter writes the same, and its library answers alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from distill_lab.chat import prompt_ids
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.export import Options
from distill_lab.export._export import export_student
from distill_lab.export._gguf_weights import write_gguf
from distill_lab.export._quantizer import PROGRAM
from distill_lab.export._source import find_source
from distill_lab.generation.engines import complete, load_engine
from distill_lab.tiny import FAMILY
from tests.helpers import finished_run, tiny_prompts

gguf = pytest.importorskip("gguf")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Strangers = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
SIZES: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
OURS = {"general.name", "tokenizer.ggml.eot_token_id", "general.quantization_version"}
"""Keys that only this lab writes, or writes differently on purpose."""


@pytest.fixture
def quantizer_on_path(interop_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantizer of the other environment."""
    found = [path.parent for path in interop_python.parent.parent.rglob(f"ik_llama_cpp/bin/{PROGRAM}")]
    if not found and not shutil.which(PROGRAM):
        pytest.skip(f"no {PROGRAM} in the other environment")
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, found), os.environ["PATH"]]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_llama_cpps_own_converter_writes_the_same(
    kind: str, tied: bool, strangers: Strangers, shared_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    maker, config = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}[kind]
    more: dict[str, Any] = {"head_dim": 32} if kind == "qwen3" else {}
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / {"qwen2": "qwen2.5", "qwen3": "qwen3"}[kind])
    model: Any = maker(config(**SIZES, **more, tie_word_embeddings=tied, eos_token_id=tokenizer.eos_token_id))
    for weight in model.parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=0.5)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_student("safetensors", find_source(str(tmp_path / "model")), tmp_path / "plain", Options(), num_prompts=0)
    write_gguf(tmp_path / "plain", tmp_path / "ours.gguf", "F16", name="x")
    talk = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    job = {"do": "convert", "folder": str(tmp_path / "plain"), "out": str(tmp_path / "theirs.gguf"), "type": "f16"}
    [found] = strangers([job | {"prompt": talk, "max_new_tokens": 2, "end": tokenizer.eos_token_id}])
    assert "error" not in found, found["error"]
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    tensors = [{tensor.name: tensor for tensor in file.tensors} for file in (ours, theirs)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert tensor.tensor_type == tensors[1][name].tensor_type, name
        np.testing.assert_array_equal(tensor.data, tensors[1][name].data, err_msg=name)
    for name, field in theirs.fields.items():
        if name.startswith(("tokenizer.", f"{kind}.")) and name not in OURS:
            assert name in ours.fields, name
            assert ours.fields[name].contents() == field.contents(), name


def test_the_tiny_students_files_answer_as_it_does(
    strangers: Strangers, quantizer_on_path: None, tmp_path: Path
) -> None:
    prompts = tiny_prompts(20)
    run = finished_run(tmp_path / "run", rows=prompts)
    out = tmp_path / "out"
    types = ("F16", "Q8_0", "Q4_K_M")
    rows = export_student("gguf", find_source(str(run)), out, Options(types=types), num_prompts=20)
    assert [row["file"] for row in rows] == [f"run-student-{kind}.gguf" for kind in types]
    assert rows[0]["bytes"] > rows[1]["bytes"] > rows[2]["bytes"]
    tokenizer: Any = AutoTokenizer.from_pretrained(FAMILY / "student")
    sampling = SamplingConfig(max_new_tokens=24, thinking=False)
    texts = [
        tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        for prompt in prompts
    ]
    engine = load_engine(ModelConfig(model="tiny:student", dtype="fp32"), EngineConfig(engine="transformers"))
    expected = {answer.id: answer.content for answer in complete(engine, prompts, sampling)}
    jobs = [{"do": "answer", "path": str(out / row["file"]), "prompts": texts, "max_new_tokens": 24} for row in rows]
    same = []
    for found in strangers(jobs):
        for prompt, row in zip(prompts, found["rows"], strict=True):
            assert row["ids"] == prompt_ids(tokenizer, prompt.messages, thinking=False)
        pairs = zip(prompts, found["rows"], strict=True)
        same.append(sum(row["text"].strip() == expected[prompt.id].strip() for prompt, row in pairs))
    assert same[0] == 20
    assert same[1] >= 19
    assert same[2] > 0
