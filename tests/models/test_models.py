"""Models by name: what is found, what is refused with which remedy, and how weights are loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError
from distill_lab.models.loading import load_model, load_tokenizer, num_parameters
from distill_lab.models.names import resolve
from distill_lab.tiny import FAMILY

pytestmark = pytest.mark.slow

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(random_model: Callable[..., Path]) -> Path:
    # 4-bit on a CPU takes layers of a multiple of 64 inputs and of 32 outputs.
    return random_model(hidden=64, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def config(model: Path | str, **fields: Any) -> ModelConfig:
    return ModelConfig(model=str(model), **fields)


def test_names_resolve_to_places(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve(str(folder)) == str(folder)
    assert resolve("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert resolve("gpt2") == "gpt2"
    monkeypatch.chdir(folder.parent)
    assert Path(resolve(folder.name)).samefile(folder)
    assert resolve("tiny:student") == str(FAMILY / "student")


def test_the_embedded_family_loads() -> None:
    model, tokenizer = load_model(config("tiny:student"))
    assert model.dtype == torch.float32
    assert model(torch.tensor([tokenizer("one")["input_ids"]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tiny:pupil", "there is no such embedded model; choose from"),
        ("/no/such/model", "no such directory"),
        ("./model", "no such directory"),
        ("owner/name/more", "no such directory, and not a Hugging Face id"),
        ("", "not a Hugging Face id"),
        ("Qwen/Not-In-The-Cache", r"HF_HUB_OFFLINE is set; .*hf download Qwen/Not-In-The-Cache"),
    ],
)
def test_unknown_names_are_refused_with_a_remedy(name: str, remedy: str) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=remedy):
            load(config(name))


def test_directories_without_a_model_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="this is a file; give the directory"):
        resolve(str(tmp_path / "model.safetensors"))


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses each name in its own way, and does not answer for owner/silent until `over` is set."""

    over = threading.Event()

    def do_GET(self) -> None:
        if "silent" in self.path:
            self.over.wait(110)
        code = {"gated": "GatedRepo", "revision": "RevisionNotFound"}.get(self.path.split("/")[4], "RepoNotFound")
        self.send_response(403 if code == "GatedRepo" else 404)
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_the_hub_says_becomes_a_remedy_at_once(tmp_path: Path) -> None:
    script = """
        import json
        from distill_lab.config import ModelConfig
        from distill_lab.errors import ModelError
        from distill_lab.models import hub, loading
        hub.HUB_TIMEOUT_S = 0.5
        said = {}
        for name in ("owner/gated", "owner/revision", "owner/nothing", "owner/silent"):
            try:
                loading.load_model(ModelConfig(model=name, revision="v9"))
            except ModelError as error:
                said[name] = str(error)
        print(json.dumps(said))
    """
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub.daemon_threads = True
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{hub.server_port}"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, timeout=100
    )
    # The child ended, so it did not wait for the silent answer.
    Hub.over.set()
    hub.shutdown()
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    for name, remedy in {
        "owner/gated": "gated; accept its terms",
        "owner/revision": "has no revision 'v9'",
        "owner/nothing": "no such model on the hub; check the name",
        "owner/silent": "the hub does not answer",
    }.items():
        assert said[name].startswith(f"{name}: ")
        assert remedy in said[name]


def test_weights_are_computed_in_fp32_on_a_cpu_whatever_was_stored(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    model, _ = load_model(config(copy))
    if model.device.type == "cpu":
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    trained, _ = load_model(config(copy), training=True)
    assert trained.training
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in trained.parameters())
    assert num_parameters(model) == sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize(("quantization", "layer"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_quantized_weights_are_real_and_close(folder: Path, quantization: Any, layer: str) -> None:
    full, _ = load_model(config(folder))
    for training in (False, True):
        model, _ = load_model(config(folder, quantization=quantization), training=training)
        inner: Any = model.get_submodule("model.layers.0.mlp.up_proj")
        assert type(inner).__name__ == layer
        assert inner.weight.element_size() == 1
        assert num_parameters(model) == num_parameters(full)
        with torch.no_grad():
            found, expected = model(IDS).logits.float(), full(IDS).logits
        assert not torch.equal(found, expected)
        assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.95


def test_layers_that_4bit_cannot_take_on_a_cpu_stay_full(random_model: Callable[..., Path]) -> None:
    odd = random_model(hidden=96, num_attention_heads=4, num_key_value_heads=1)
    model, _ = load_model(config(odd, quantization="4bit"))
    kinds = {name: type(layer).__name__ for name, layer in model.get_submodule("model.layers.1").named_modules()}
    if model.device.type == "cpu":
        assert (kinds["mlp.down_proj"], kinds["mlp.up_proj"], kinds["self_attn.k_proj"]) == (
            "Linear4bit",
            "Linear",
            "Linear",
        )
    full, _ = load_model(config(odd))
    with torch.no_grad():
        assert torch.nn.functional.cosine_similarity(model(IDS).logits, full(IDS).logits, dim=-1).min() > 0.95
    if model.device.type == "cpu":
        with pytest.raises(ModelError, match="no layer has sizes that 4bit supports"):
            load_model(config(random_model(hidden=48), quantization="4bit"))


def test_damaged_weights_are_refused(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(config(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(config(copy))


def test_missing_weights_are_refused_and_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing \(model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(config(copy))


def test_code_from_a_repository_runs_only_where_it_is_allowed(copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    settings["model_type"] = "unheard-of"
    settings["auto_map"] = {"AutoConfig": "code.Settings", "AutoModelForCausalLM": "code.Model"}
    (copy / "config.json").write_text(json.dumps(settings))
    (copy / "code.py").write_text(f"open({str(copy / 'was_run')!r}, 'w')\n")
    with pytest.raises(ModelError, match="read it, then pass --trust-remote-code"):
        load_model(config(copy))
    assert not (copy / "was_run").exists()


def test_a_tokenizer_without_padding_pads_with_its_end(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    assert load_tokenizer(config(copy)).pad_token == settings["pad_token"]
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(config(copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None
    del settings["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no padding token and no end token; set pad_token"):
        load_tokenizer(config(copy))


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(config(folder))
    assert capfd.readouterr() == ("", "")
