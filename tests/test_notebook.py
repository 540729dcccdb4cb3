"""The notebook: what the requirements say stands in it, no outputs in the file, and it runs from top to bottom."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
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
