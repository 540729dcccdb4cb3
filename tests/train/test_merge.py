"""Adapters merged a layer at a time: the same weights as in memory, and never more than a layer of them unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from distill_lab.config import LoraConfig, ModelConfig, Quantization
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.train import merge
from distill_lab.train.lora import add_adapters, merge_directory, merged
from distill_lab.train.merge import can_write_merged, write_merged


def adapted(folder: Path, quantization: Quantization) -> Any:
    model, _ = load_model(ModelConfig(model=str(folder), quantization=quantization, dtype="fp32"))
    found: Any = add_adapters(model, LoraConfig(r=4, alpha=8), name=str(folder), seed=0)
    torch.manual_seed(1)
    for name, weight in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return found


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_it_writes_what_merging_in_memory_gives(
    quantization: Quantization, tied: bool, random_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_model(hidden=64, layers=3, tie_word_embeddings=tied, attention_bias=True)
    model = adapted(folder, quantization)
    assert can_write_merged(model)
    write_merged(model, tmp_path / "layers", dtype=torch.float32)
    whole: Any = merged(model)
    whole.to(torch.float32).save_pretrained(tmp_path / "whole")
    ours, theirs = read(tmp_path / "layers"), read(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=0 if quantization == "none" else 1e-6)
    mine, other = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("layers", "whole"))
    assert mine == other
    loaded, _ = (load_model(ModelConfig(model=str(folder)))[0], None)
    again: Any = type(loaded).from_pretrained(tmp_path / "layers")
    assert not any("quant" in key for key in again.config.to_dict())


def test_a_large_model_goes_to_several_files_and_no_more_than_one_waits_in_memory(
    random_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_model(hidden=64, layers=4)
    model, sizes = adapted(folder, "4bit"), []
    keep = merge.save_file

    def save_file(shard: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        sizes.append(sum(weight.nbytes for weight in shard.values()))
        keep(shard, path, metadata=metadata)

    monkeypatch.setattr(merge, "save_file", save_file)
    monkeypatch.setattr(merge, "SHARD_BYTES", 50_000)
    write_merged(model, tmp_path / "out", dtype=torch.float32)
    largest = max(weight.nbytes for weight in read(tmp_path / "out").values())
    assert len(sizes) > 4
    assert max(sizes) <= 50_000 + largest
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    whole: Any = merged(model)
    again, _ = load_model(ModelConfig(model=str(folder)))
    loaded: Any = type(again).from_pretrained(tmp_path / "out")
    for (name, weight), (_, other) in zip(loaded.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(weight, other.to(weight.dtype), rtol=0, atol=1e-6, msg=name)


def test_a_directory_of_adapters_on_4_bits_is_merged_without_unpacking_the_model(
    random_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_model(hidden=64, layers=2)
    model = adapted(folder, "4bit")
    model.save_pretrained(tmp_path / "adapters")
    load_tokenizer(ModelConfig(model=str(folder))).save_pretrained(tmp_path / "adapters")
    monkeypatch.setattr(PreTrainedModel, "dequantize", lambda self: pytest.fail("the whole model was unpacked"))
    merge_directory(ModelConfig(model=str(tmp_path / "adapters"), quantization="4bit"), tmp_path / "out")
    ids = torch.arange(1, 9)[None]
    whole, _ = load_model(ModelConfig(model=str(tmp_path / "out"), dtype="fp32"))
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, model.eval()(ids).logits, rtol=1e-3, atol=1e-3)
