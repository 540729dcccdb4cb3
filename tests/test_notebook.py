"""The notebook: what the requirements say stands in it, no outputs in the file, and it runs from top to bottom."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import distill_app
from distill_lab.config import ModelConfig
from distill_lab.easydistill import presets
from distill_lab.easydistill.training import Training, longest_batches
from distill_lab.planning.machine import CONTEXT, Machine
from distill_lab.planning.method import answering, choose_method
from distill_lab.planning.model_shape import shape_of
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

SMALL = {
    "setup": 'PRESET = "tiny"',
    "system1-config": 'DATASET_SLICE_SYS1 = "distill[:80]"\nNUM_EPOCHS_SYS1 = 1',
    "system2-config": 'DATASET_SLICE_SYS2 = "distill[:80]"\nNUM_EPOCHS_SYS2 = 1',
}
"""Parameters put in after the cells that set them."""


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(ROOT / "notebook.ipynb", as_version=4)


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_laid_out_as_required_and_holds_no_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    titles = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Setup",
        "## System 1 Distillation (Instruction-Following)",
        "## System 2 Distillation (Reasoning / CoT)",
        "## Comparison",
    ]
    cells = {cell.id: cell for cell in notebook.cells}
    for name in ("system1", "system2"):
        order = [cell.id for cell in notebook.cells if cell.id.startswith(name) and cell.cell_type == "code"]
        assert order == [f"{name}-config", f"{name}-data", f"{name}-run"]
    assert "colab-badge.svg" in cells["title"].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
        elif cell.id != "title":
            assert cell.source.index("**In simple words.**") < cell.source.index("**In technical words.**")
    assert set(SMALL) == {cell.id for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())}


def test_its_variables_are_the_requirements(notebook: Any) -> None:
    found = {}
    for cell in notebook.cells:
        if cell.id in SMALL and cell.id != "setup":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found[node.targets[0].id] = ast.literal_eval(node.value)
    wanted = {
        "TEACHER_MODEL_SYS1": "Qwen/Qwen2.5-7B-Instruct", "STUDENT_MODEL_SYS1": "Qwen/Qwen2.5-0.5B-Instruct",
        "DATASET_SLICE_SYS1": "train[:1000]", "NUM_EPOCHS_SYS1": 1,
        "STUDENT_MODEL_SYS2": "Qwen/Qwen2.5-1.5B-Instruct", "DATASET_SLICE_SYS2": "train[:2000]",
        "RV_MIN": 0.6, "CD_MIN": 0.6, "NUM_EPOCHS_SYS2": 1,
    }  # fmt: skip
    assert wanted.items() <= found.items()


def test_it_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for place in reversed(range(len(notebook.cells))):
        if notebook.cells[place].id in SMALL:
            notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL[notebook.cells[place].id]))
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    assert "Saved System 1 labeled data to data/train_labeled.json\n" in printed(cells["system1-data"])
    assert printed(cells["system1-run"]).endswith("System 1 student saved to ./distilled-tiny\n")
    assert "RV/CD scores not found, using raw slice: 80\n" in printed(cells["system2-data"])
    assert printed(cells["system2-run"]).endswith("System 2 student saved to ./distilled-tiny-cot\n")
    compared = printed(cells["comparison-run"])
    assert [compared.count(f"{label}:\n") for label in ("Teacher", "System 1", "System 2")] == [2, 2, 2]
    assert "Teacher:\n  PEAR, CAT\n" in compared
    assert "not found" not in compared
    for folder in ("distilled-tiny", "distilled-tiny-cot"):
        assert json.loads((tmp_path / folder / "config.json").read_text())["model_type"] == "qwen3"


COLAB = Machine("cuda", 15e9, 12e9, "fp16")
"""A T4, as Colab lends it."""
KERNEL_RAM = 2.5e9
"""Bytes of host memory of a notebook's kernel that has loaded torch, CUDA's libraries and models that are gone again."""


def settings_of(notebook: Any, name: str) -> dict[str, Any]:
    """What a config cell sets for real models."""
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def trained_as(
    function: str, notebook: Any, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Any:
    """The method that the run cell's call leads to on Colab, by way of the config it writes."""
    (cell,) = [cell for cell in notebook.cells if cell.id == f"{function.removeprefix('distill_')}-run"]
    (call,) = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    config = eval(compile(ast.Expression(call.args[0]), "cell", "eval"), {}, names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill_app.run_easy_distill", lambda path, **how: written.append(path) or 1)
    monkeypatch.setattr("distill_app._ready", lambda *args, **how: True)
    monkeypatch.setattr("distill_lab.planning.preflight.check_model", lambda *args, **how: None)
    written: list[str] = []
    getattr(distill_app, function)(config)
    training = Training.model_validate(json.loads((tmp_path / written[0]).read_text())["training"])
    student = ModelConfig(model=config["student_model"])
    return choose_method(student, longest_batches(training, seed=0), machine=COLAB)


@pytest.mark.parametrize("relabel", [False, True])
@pytest.mark.parametrize("time", ["first", "second"])
def test_every_cell_fits_a_t4_with_12_gb_of_ram(
    time: str, relabel: bool, notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = settings_of(notebook, "system1-config") | settings_of(notebook, "system2-config")
    teacher = ModelConfig(model=names["TEACHER_MODEL_SYS1"], quantization="auto")
    # What the kernel holds of the GPU when the cell runs: its context, once any cell before has used the GPU. Models are
    # given back (tests/test_kernel_memory.py).
    used = relabel or time == "second"
    gpu = 0.96 * COLAB.memory - (CONTEXT if used else 0)
    ram = COLAB.usable_ram - KERNEL_RAM
    if relabel:  # in the kernel itself
        chosen, need = answering(shape_of(teacher), teacher, COLAB, new_tokens=256)
        assert chosen.quantization == "8bit"
        assert need.total + CONTEXT <= 0.96 * COLAB.memory
        assert need.host <= COLAB.usable_ram
    lines = {}
    for system in ("system1", "system2"):
        found = trained_as(f"distill_{system}", notebook, names, monkeypatch, tmp_path)
        assert found.memory.total + CONTEXT <= gpu
        assert found.memory.host <= ram
        lines[system] = found.line
    assert "full fine-tune, " in lines["system1"]
    assert "LoRA r 16" in lines["system2"]
    assert found.train.lora.merge  # so that the comparison finds a plain model
    for name in (names["TEACHER_MODEL_SYS1"], names["STUDENT_MODEL_SYS1"], names["STUDENT_MODEL_SYS2"]):
        model = ModelConfig(model=name, quantization="auto")
        _, need = answering(shape_of(model), model, COLAB, new_tokens=512)
        assert need.total + CONTEXT <= 0.96 * COLAB.memory
        assert need.host <= COLAB.usable_ram


def test_the_real_models_are_chosen_by_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, preset in ((COLAB, "qwen2.5"), (Machine("mps", 16e9, 16e9, "fp16"), "tiny"), (None, "tiny")):
        found = machine or Machine("cpu", 64e9, 64e9, "fp32")
        monkeypatch.setattr("distill_lab.planning.machine.this_machine", lambda found=found: found)
        assert presets.choose_preset()[0] == preset


def test_an_unset_repository_is_said_in_a_sentence(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = [cell for cell in notebook.cells if "REPOSITORY = " in cell.source]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *args, **how: pytest.fail("nothing is to be fetched"))
    with pytest.raises(SystemExit, match="Set REPOSITORY to the address"):
        exec(compile(cell.source, "setup", "exec"), {})
