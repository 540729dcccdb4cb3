"""The notebook: what the requirements say stands in it, no outputs in the file, and it runs from top to bottom."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import distill_app
from distill_lab.commands._notebook import recipe_config
from distill_lab.config import STEP_BY_STEP, ModelConfig
from distill_lab.easydistill import job, presets
from distill_lab.easydistill.presets import SYSTEM1_CONFIG, SYSTEM2_CONFIG
from distill_lab.easydistill.training import Training, longest_batches
from distill_lab.planning.forecast import make_forecast
from distill_lab.planning.machine import CONTEXT, Machine
from distill_lab.planning.method import answering, choose_method
from distill_lab.planning.model_shape import shape_of
from distill_lab.planning.throughput import Throughput
from distill_lab.recipes import logits
from distill_lab.report.run_student import student_of
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

SMALL = {
    "setup": 'PRESET = "tiny"',
    "system1-config": 'DATASET_SLICE_SYS1, TEST_SLICE_SYS1 = "distill[:60]", "test[:6]"\n'
    "NUM_EPOCHS_SYS1, MEASURE_SYS1 = 1, False",
    "system2-config": 'DATASET_SLICE_SYS2, TEST_SLICE_SYS2 = "distill[:60]", "test[:6]"\n'
    "NUM_EPOCHS_SYS2, MEASURE_SYS2 = 1, False",
    "more-config": "ROWS_MORE, TEST_MORE, EPOCHS_MORE, STEPS_ON_POLICY = 30, 3, 1, 4",
    "export": 'EXPORT, CHECK = "safetensors", 2',
}
"""Parameters put in after the cells that set them."""
MORE = ("cot", "verified", "prompt", "logits", "on-policy", "draft")
"""Cells with a recipe each."""
MAX_LINES = 60
"""Of a cell's output."""


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
        "## More ways to distill",
        "## Take it home",
        "## What next",
    ]
    cells = {cell.id: cell for cell in notebook.cells}
    for name in ("system1", "system2"):
        order = [cell.id for cell in notebook.cells if cell.id.startswith(name) and cell.cell_type == "code"]
        assert order == [f"{name}-{part}" for part in ("config", "estimate", "data", "run", "score", "page")]
    assert [cell.id for cell in notebook.cells if cell.id in MORE] == list(MORE)
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


def executed(notebook: Any, folder: Path, parameters: dict[str, str], *, timeout: int) -> dict[str, Any]:
    """Run the notebook in a folder, with cells after those that set parameters; its cells by id."""
    for place in reversed(range(len(notebook.cells))):
        if notebook.cells[place].id in parameters:
            notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(parameters[notebook.cells[place].id]))
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.id: cell for cell in notebook.cells}


def html(cell: Any) -> str:
    return "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)


@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = executed(notebook, tmp_path, SMALL, timeout=880)
    assert "torch" in printed(cells["setup"])
    for name in ("system1", "system2"):
        assert printed(cells[f"{name}-estimate"]).startswith("Estimate:\n  time: ~ ")
        assert re.search(r"^\d+ s, at most \d\.\d GB of memory$", printed(cells[f"{name}-run"]), re.MULTILINE)
        result = printed(cells[f"{name}-score"])
        assert re.search(r"^ +score \[95%\] ", result, re.MULTILINE)
        assert "gain       " in result
        shown = html(cells[f"{name}-score"])
        assert shown.count("<svg") == 3  # scores, tokens per answer, loss; no speed was measured
        assert "Loss, nats per token" in shown
        assert 'sandbox="allow-scripts"' in html(cells[f"{name}-page"])
    assert "Saved System 1 labeled data to data/train_labeled.json\n" in printed(cells["system1-data"])
    assert "data/train_labeled.json: 60 rows, for example\n\n  instruction: " in printed(cells["system1-data"])
    assert printed(cells["system1-run"]).endswith("System 1 student saved to ./distilled-tiny\n")
    assert "RV/CD scores not found, using raw slice: 60\n" in printed(cells["system2-data"])
    assert printed(cells["system2-run"]).endswith("System 2 student saved to ./distilled-tiny-cot\n")
    assert "reason in several steps" in printed(cells["system2-score"])
    compared = printed(cells["comparison-run"])
    assert [compared.count(f"{label}:\n") for label in ("Teacher", "System 1", "System 2")] == [2, 2, 1]
    assert "Teacher:\n  PEAR, CAT\n" in compared
    assert "not found" not in compared
    assert re.search(r"pear, cat, hat\n\n.+\n\n\(\d+\.\d s\)", printed(cells["ask"]), re.DOTALL)
    for name in MORE:
        said = printed(cells[name])
        assert said.startswith(f"In a terminal: distill {name} --preset tiny "), said
        assert f"all files are in runs/{name}: " in said, said
        assert html(cells[name]).count("<svg") == (1 if name == "draft" else 3)
    assert (tmp_path / "distilled-tiny.run" / "export" / "safetensors" / "README.md").is_file()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            said = printed(cell)
            assert len(said.splitlines()) <= MAX_LINES, f"{cell.id}: {said}"
            assert "\x1b" not in said
            assert "\r" not in said
    # A lost session: the folder comes back at another place, and nothing is trained again.
    there = tmp_path / "drive"
    shutil.copytree(tmp_path, there, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("drive"))
    monkeypatch.chdir(there)
    trained: list[Path] = []
    monkeypatch.setattr("distill_lab.train.student.train_student", lambda *args, **how: trained.append(args[2]))
    for config, out in ((SYSTEM1_CONFIG, "distilled-tiny"), (SYSTEM2_CONFIG, "distilled-tiny-cot")):
        assert job.run(config) == there / out
        assert student_of(there / f"{out}.run").model == str(there / out)
    made = json.loads((there / "runs" / "logits" / "run.json").read_text(encoding="utf-8"))["config"]
    logits.run(logits.Config.model_validate(made), there / "runs" / "logits")
    assert trained == []


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
    assert config.get("relabel", False) == (names["RELABEL_SYS1"] and function == "distill_system1")
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
def test_both_trainings_fit_a_t4_with_12_gb_of_ram(
    time: str, relabel: bool, notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names: dict[str, Any] = {**real_settings(notebook), "RELABEL_SYS1": relabel}
    # What the kernel holds of the GPU when the cell runs: its context, once any cell before has used the GPU. Models are
    # given back (tests/test_kernel_memory.py).
    gpu = 0.96 * COLAB.memory - (CONTEXT if time == "second" else 0)
    ram = COLAB.usable_ram - KERNEL_RAM
    lines = {}
    for system in ("system1", "system2"):
        found = trained_as(f"distill_{system}", notebook, names, monkeypatch, tmp_path)
        assert found.memory.total + CONTEXT <= gpu
        assert found.memory.host <= ram
        lines[system] = found.line
    assert "full fine-tune, " in lines["system1"]
    assert "LoRA r 16" in lines["system2"]
    assert found.train.lora.merge  # so that the comparison finds a plain model


def real_settings(notebook: Any) -> dict[str, Any]:
    """The variables as all config cells set them for real models."""
    names: dict[str, Any] = {"PRESET": "qwen2.5", "STEP_BY_STEP": STEP_BY_STEP}
    names |= {"SYSTEM1_CONFIG": SYSTEM1_CONFIG, "SYSTEM2_CONFIG": SYSTEM2_CONFIG}
    for name in SMALL:
        if name != "setup":
            names |= settings_of(notebook, name)
    return names


def called(notebook: Any, names: dict[str, Any], function: str) -> dict[str, tuple[Any, ...]]:
    """The arguments of each cell's call of a function, by the cell's id; nothing is run."""
    found: dict[str, tuple[Any, ...]] = {}
    for cell in notebook.cells:
        if cell.id == "more-data" or (cell.cell_type == "code" and f"\n{function}(" in f"\n{cell.source}"):

            def record(*args: Any, cell: str = cell.id, **how: Any) -> None:
                found[cell] = (*args, how)

            source = cell.source.replace("from distill_lab.config import STEP_BY_STEP\n", "")
            exec(compile(source, cell.id, "exec"), names | {function: record} if cell.id != "more-data" else names)
    return found


@pytest.mark.parametrize("relabel", [False, True])
def test_every_other_cell_fits_a_t4_with_12_gb_of_ram(
    relabel: bool, notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("distill_lab.planning.forecast._speed", lambda *args: Throughput(1e-4, {1: 1e-2, 64: 2e-2}))
    names: dict[str, Any] = {**real_settings(notebook), "RELABEL_SYS1": relabel}
    ram = COLAB.usable_ram - KERNEL_RAM
    planned = called(notebook, names, "estimate") | called(notebook, names, "recipe")
    assert set(planned) == {"system1-estimate", "system2-estimate", *MORE}
    for cell, (recipe, preset, settings, _) in planned.items():
        _, config = recipe_config(recipe, preset, settings)
        forecast = make_forecast(recipe, config, directory=tmp_path, machine=COLAB)
        assert [text for text in forecast.problems if "are free" not in text] == [], cell
        for stage in forecast.stages:
            if stage.memory:
                assert stage.memory.total <= COLAB.usable, (cell, stage.name)
                assert stage.memory.host <= ram, (cell, stage.name)
    scored = called(notebook, names, "score")
    assert set(scored) == {"system1-score", "system2-score"}
    longest = max(how["max_new_tokens"] for *_, how in scored.values())
    for name in (names["TEACHER_MODEL_SYS1"], names["STUDENT_MODEL_SYS1"], names["STUDENT_MODEL_SYS2"]):
        model = ModelConfig(model=name, quantization="auto")
        _, need = answering(shape_of(model), model, COLAB, new_tokens=longest)
        assert need.total + CONTEXT <= 0.96 * COLAB.memory
        assert need.host <= ram


def test_the_real_models_are_chosen_by_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, preset in ((COLAB, "qwen2.5"), (Machine("mps", 16e9, 16e9, "fp16"), "tiny"), (None, "tiny")):
        found = machine or Machine("cpu", 64e9, 64e9, "fp32")
        monkeypatch.setattr("distill_lab.planning.machine.this_machine", lambda found=found: found)
        assert presets.choose_preset()[0] == preset


def install_cell(notebook: Any) -> Any:
    (cell,) = [cell for cell in notebook.cells if cell.id == "install"]
    return compile(cell.source, "install", "exec")


def test_an_unset_repository_is_said_in_a_sentence(
    notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *args, **how: pytest.fail("nothing is to be fetched"))
    with pytest.raises(SystemExit, match="Set REPOSITORY to the address"):
        exec(install_cell(notebook), {})


def test_a_repository_that_cannot_be_fetched_is_said_in_a_sentence(
    notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    notebook.cells[2].source = notebook.cells[2].source.replace('REPOSITORY = ""', f'REPOSITORY = "{tmp_path}/none"')
    with pytest.raises(SystemExit, match="/none could not be fetched: check address"):
        exec(install_cell(notebook), {})
