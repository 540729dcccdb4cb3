"""Model directories that are damaged or hostile: named with a remedy, no code of theirs runs, and no traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_lab.chat import end_token_ids, prompt_ids
from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.models.generation_config import generation_settings, resolve_sampling
from distill_lab.models.loading import check_weights, load_model, load_tokenizer
from distill_lab.models.names import base_of, resolve
from tests.helpers import FAMILY
from tests.mutations import mutations

ASK = [{"role": "user", "content": "1 plus 1?"}]
ADAPTER = {"base_model_name_or_path": "tiny:student", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny student."""
    return Path(shutil.copytree(FAMILY / "student", tmp_path / "model"))


def config(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(model=str(folder), **settings)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values))


class RunsCode:
    """An object whose unpickling would run a command."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.sign}",)


@pytest.mark.parametrize("kind", ["code", "plain pickle", "garbage", "empty"])
def test_pickled_weights_run_no_code(kind: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    if kind == "code":
        torch.save({"a": RunsCode(tmp_path / "sign")}, weights)
    else:
        content = pickle.dumps({"a": RunsCode(tmp_path / "sign")}) if kind == "plain pickle" else b"\x80\x04rubbish"
        weights.write_bytes(b"" if kind == "empty" else content)
    with pytest.raises(ModelError) as caught:
        load_model(config(folder))
    assert not (tmp_path / "sign").exists()
    assert kind not in ("code", "plain pickle") or ".safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 10}, {"vocab_size": "x"}, {"hidden_size": 0}, {"num_attention_heads": 0}, {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9}, {"hidden_size": 10**12}, {"model_type": "nope"}, {"model_type": None},
        {"hidden_act": "nope"}, {"eos_token_id": "x"}, {"dtype": "nope"}, {"quantization_config": 7},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_model_is_named(values: dict[str, Any], folder: Path) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(ModelError, match=str(folder)):
        load_model(config(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_of_a_model_is_named(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=str(folder)):
        load_model(config(folder))


def test_a_vocabulary_that_is_too_small_belongs_to_another_model(
    folder: Path, random_model: Callable[..., Path]
) -> None:
    other = random_model(vocab_size=100, eos_token_id=1, pad_token_id=1)
    with pytest.raises(ModelError, match="belongs to another model"):
        load_model(config(other))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, ADAPTER | {"base_model_name_or_path": None},
        ADAPTER | {"base_model_name_or_path": 7}, ADAPTER | {"base_model_name_or_path": ""}, ADAPTER | {"revision": 7},
        ADAPTER | {"base_model_name_or_path": "openai:x"}, ADAPTER | {"base_model_name_or_path": "{itself}"},
        ADAPTER | {"base_model_name_or_path": "a" * 5000}, ADAPTER | {"base_model_name_or_path": "no-such/model"}, ADAPTER,
    ],
)  # fmt: skip
def test_a_bad_adapter_config_is_named(content: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (adapter / "adapter_config.json").write_bytes(text.replace(b"{itself}", str(adapter).encode()))
    with pytest.raises(ModelError) as caught:
        load_model(config(adapter))
    assert len(str(caught.value)) < 1000


def test_a_thousand_adapter_and_generation_configs(tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    for damaged in mutations(json.dumps(ADAPTER).encode(), 1000):
        file.write_bytes(damaged)
        try:
            assert base_of(config(tmp_path)).model
        except ModelError:
            continue
    (tmp_path / "config.json").write_text("{}")
    file, whole = (
        tmp_path / "generation_config.json",
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    )
    for damaged in mutations(json.dumps(whole | {"eos_token_id": [1, 2], "repetition_penalty": 1.05}).encode(), 1000):
        file.write_bytes(damaged)
        for from_model in (True, False):
            try:
                sampling, _ = resolve_sampling(config(tmp_path), SamplingConfig(from_model=from_model))
                assert sampling.temperature >= 0
            except UserError:
                continue


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"temperature": "x"}', b'{"eos_token_id": "x"}', b'{"eos_token_id": [null]}']
)
def test_a_damaged_generation_config_is_named(content: bytes, folder: Path) -> None:
    (folder / "generation_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"generation_config\.json: .*; download the model again"):
        generation_settings(config(folder))


TEMPLATES = {
    "division by zero": "{{ 1/0 }}", "include": "{% include 'x' %}", "import": "{% import 'x' as y %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "syntax": "{% if %}", "type": "{{ messages + 1 }}",
    "sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "missing": "{{ messages[99].content }}",
    "refusal": "{{ raise_exception('no') }}", "deep": "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "200 MB": "{{ 'x' * 200000000 }}", "loop": "{% for i in range(99999) %}{{ messages }}{{ 'x' * 999 }}{% endfor %}",
    "digits": "{{ '%d' % (10**5000) }}", "extends": "{% extends 'x' %}",
}  # fmt: skip


def test_ctrl_c_ends_a_template_that_would_take_years(folder: Path) -> None:
    tokenizer = load_tokenizer(config(folder))
    loops = "".join(f"{{% for i{n} in range(99999) %}}" for n in range(3)) + "{% endfor %}" * 3
    tokenizer.chat_template = loops

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            prompt_ids(tokenizer, ASK)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_fails_is_named(name: str, folder: Path) -> None:
    tokenizer = load_tokenizer(config(folder))
    tokenizer.chat_template = TEMPLATES[name]
    with pytest.raises(UserError, match=f"{folder}: its chat template"):
        prompt_ids(tokenizer, ASK)


def test_half_a_surrogate_pair_is_a_replacement_character(folder: Path) -> None:
    tokenizer = load_tokenizer(config(folder))
    half, whole = ([{"role": "user", "content": text}] for text in ("a \ud83d b", "a \ufffd b"))
    assert prompt_ids(tokenizer, half) == prompt_ids(tokenizer, whole)


def test_an_end_token_that_is_no_token_is_named(folder: Path) -> None:
    tokenizer = load_tokenizer(config(folder))
    model, _ = load_model(config(folder))
    assert model.generation_config is not None
    for bad in ("x", [None], [1.5]):
        model.generation_config.eos_token_id = bad  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(UserError, match="eos_token_id in its generation_config"):
            end_token_ids(tokenizer, model.generation_config)


def test_weights_that_are_not_numbers_are_the_models_fault(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model, _ = load_model(config(folder))
    with pytest.raises(ModelError, match=r"its weights are damaged \(.* contains NaN"):
        check_weights(model, str(folder))


@pytest.mark.parametrize("model", ["tiny:student", "{folder}"])
def test_a_revision_of_a_model_on_this_machine_is_refused(model: str, folder: Path) -> None:
    for load in (load_tokenizer, load_model):
        with pytest.raises(ModelError, match="has no revision 'main'; remove revision"):
            load(ModelConfig(model=model.format(folder=folder), revision="main"))


@pytest.mark.parametrize("name", ["a" * 500, "/" + "a" * 500, "a/" * 5000, "tiny:" + "b" * 500, "é" * 200, "a\0b", ""])
def test_a_name_that_no_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert len(str(caught.value)) < 300
