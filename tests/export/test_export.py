"""`distill export`: what is written, loaded again and compared, what the card says, and what is refused."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lab.commands import export as command
from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.export import Options, hub, load_target, target_names
from distill_lab.export._check import check_prompts
from distill_lab.export._export import export_student
from distill_lab.export._source import Source, find_source, plain_folder
from distill_lab.report._licenses import card_head
from distill_lab.report.model_card import ExportRow
from distill_lab.tiny import FAMILY
from tests.helpers import finished_run, model_folder, tiny_prompts

pytestmark = pytest.mark.slow

pytest.importorskip("gguf")
NUM_PROMPTS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs") / "first", rows=tiny_prompts(NUM_PROMPTS))


def check_of(row: ExportRow) -> dict[str, Any]:
    return row.get("check") or {}


def adapters_in(folder: Path) -> Path:
    """Adapters on the tiny student that change its answers."""
    model: Any = AutoModelForCausalLM.from_pretrained(FAMILY / "student", dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(model, PeftLoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = "tiny:student"
    adapted.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(FAMILY / "student").save_pretrained(folder)
    return folder


def test_q8_answers_as_the_student_and_the_card_says_so(run: Path) -> None:
    out, notes = run / "export" / "ollama", list[str]()
    source = find_source(str(run))
    rows = export_student("ollama", source, out, Options(), num_prompts=NUM_PROMPTS, on_note=notes.append)
    [file] = [row for row in rows if check_of(row)]
    check = check_of(file)
    assert (file["file"], check["n"], check["grader"]) == ("first-student-Q8_0.gguf", NUM_PROMPTS, "exact")
    assert check["same"] >= 0.95 * NUM_PROMPTS
    assert check["score"] == pytest.approx(check["student_score"], abs=0.05)
    assert 0 < check["student_score"] < 1
    assert check["next_tokens"] > NUM_PROMPTS
    assert 0.97 * check["next_tokens"] <= check["next_tokens_same"] <= check["next_tokens"]
    assert check["loaded_with"] == ("llama.cpp" if find_spec("xllamacpp") else "transformers (unpacked)")
    assert check["tokenized_alike"] == (NUM_PROMPTS if find_spec("xllamacpp") else None)
    assert {path.name for path in out.iterdir()} == {
        "first-student-Q8_0.gguf", "Modelfile", "README.md", "export.json", "check"
    }  # fmt: skip
    assert (out / "Modelfile").read_text().startswith("FROM ./first-student-Q8_0.gguf\n")
    line = (
        f"| first-student-Q8_0.gguf | {file['bytes'] / 1e6:.1f} MB | {check['loaded_with']} | {check['same']} of 20 |"
    )
    for card in (out / "README.md", run / "student" / "README.md"):
        assert line in card.read_text()
    assert any(f"{check['same']} of 20 greedy answers are the student's" in note for note in notes)
    before = (out / "first-student-Q8_0.gguf").stat().st_mtime_ns
    assert export_student("ollama", source, out, Options(), num_prompts=NUM_PROMPTS) == rows
    assert (out / "first-student-Q8_0.gguf").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made with other settings: .*types"):
        export_student("ollama", source, out, Options(types=("F16",)), num_prompts=NUM_PROMPTS)


def test_adapters_are_merged_and_the_dtype_is_the_requested_one(tmp_path: Path) -> None:
    source = find_source(str(adapters_in(tmp_path / "adapters")))
    [row] = export_student("safetensors", source, tmp_path / "out", Options(dtype="fp32"), num_prompts=4)
    assert (row["file"], check_of(row)["same"]) == ("model", 4)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    assert not any("lora" in name for name in merged)
    base = load_file(FAMILY / "student" / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name].float(), merged[name])}
    assert changed == {name for name in base if "q_proj" in name or "down_proj" in name}
    head = card_head((tmp_path / "out" / "README.md").read_text())
    assert (head["library_name"], head["license"]) == ("transformers", "apache-2.0")
    rows = export_student("safetensors", source, tmp_path / "short", Options(), num_prompts=0)
    assert rows[0].get("check", "absent") is None
    # As the base's weights are stored.
    assert {weight.dtype for weight in load_file(tmp_path / "short" / "model.safetensors").values()} == {torch.float16}


def test_a_run_a_directory_and_a_name_are_found_and_anything_else_refused(run: Path, tmp_path: Path) -> None:
    assert find_source(str(run)) == Source(ModelConfig(model=str(run / "student")), run)
    assert find_source("tiny:student").name == "tiny-student"
    assert plain_folder(find_source("tiny:student"), tmp_path) == FAMILY / "student"
    for name, message in (
        (str(tmp_path), "no config.json.*or give a run directory"),
        ("openai:gpt", "on a server"),
        ("no/such/place", "give a run directory|no such directory|HF_HUB_OFFLINE"),
    ):
        with pytest.raises(UserError, match=message):
            plain_folder(find_source(name), tmp_path / "work")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF file already"):
        find_source(str(tmp_path / "x.gguf"))
    model = model_folder(tmp_path / "quantized")
    (model / "config.json").write_text('{"quantization_config": {"load_in_4bit": true}}')
    with pytest.raises(ModelError, match="stored in 4 or 8 bits"):
        plain_folder(find_source(str(model)), tmp_path / "work")


def test_a_run_without_a_student_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    assert find_source(str(tmp_path / "moved")).model.model == str(tmp_path / "moved" / "student")
    shutil.rmtree(tmp_path / "moved" / "student")
    with pytest.raises(UserError, match="no longer there; run its command again"):
        find_source(str(tmp_path / "moved"))
    manifest = json.loads((run / "run.json").read_text())
    del manifest["stages"]["student"]
    (tmp_path / "moved" / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no finished student yet"):
        find_source(str(tmp_path / "moved"))


def test_prompts_come_from_all_over_the_test_and_general_ones_do_without_a_run(run: Path) -> None:
    names = [prompt.id for prompt in check_prompts(find_source(str(run)), 5)]
    assert names == ["t-0", "t-4", "t-8", "t-12", "t-16"]
    general = check_prompts(find_source("tiny:student"), 30)
    assert len({prompt.messages[0]["content"] for prompt in general}) == len(general) == 20
    assert all(prompt.answer is None for prompt in general)


def test_nothing_of_the_users_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not written by this command"):
        export_student("safetensors", find_source("tiny:student"), tmp_path / "out", Options(), num_prompts=0)
    model = shutil.copytree(FAMILY / "student", tmp_path / "model")
    with pytest.raises(UserError, match="also an input"):
        export_student("safetensors", find_source(str(model)), model, Options(), num_prompts=0)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_targets_are_files_and_each_checks_its_options() -> None:
    assert target_names() == ["gguf", "hub", "mlx", "ollama", "safetensors"]
    with pytest.raises(UserError, match="--to onnx: no such target; choose from gguf, hub, mlx"):
        load_target("onnx")
    if find_spec("mlx_lm") is None:
        with pytest.raises(UserError, match="pip install mlx-lm"):
            load_target("mlx").check(Options())
    for repo in ("", "me", "me/x/y", "../x/y", "me/"):
        with pytest.raises(UserError, match="owner/name"):
            hub.check(Options(repo=repo))
    hub.check(Options(repo="me/my-student.v2"))


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = command.Config(run="tiny:student", to="hub", repo="me/s", dry_run=True, check=2, out=tmp_path / "out")
    command.main(config)
    printed = " ".join(capsys.readouterr().out.split())
    assert "model.safetensors 1 MiB" in printed
    assert "would go to the private repository me/s; nothing was sent" in printed
    assert "export.json" not in printed
    assert "check/" not in printed
    # HF_HUB_OFFLINE is set in tests: an upload is refused by name.
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.publish(tmp_path / "out", Options(repo="me/s"), overwrite=False)
