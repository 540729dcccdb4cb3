"""Imports point down only. The ranks are the folders' order below; a module's rank is that of its folder or file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PACKAGE

FLOORS = (
    "errors types settings config control_tokens chat answers activity formatting device tiny",
    "files",
    "run",
    "models",
    "data",
    "generation",
    "grading",
    "training_data",
    "train",
    "evaluation",
    "report",
    "export",
    "planning",
    "pipeline",
    "recipes easydistill",
    "terminal",
    "commands",
    "cli",
)
"""From the ground up. A room may import those of its own floor and of the floors below."""
RANK = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms.split()}
MAX_ROOMS = 30
MAX_LINES, MAX_MEDIAN_LINES = 400, 120


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top, inside functions or for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "distill_lab":
            base = node.module.removeprefix("distill_lab").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                found.add(name if name in MODULES or not base else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("distill_lab.") for a in node.names if a.name.startswith("distill_lab.")}
    return found - {"__version__"}


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != "__init__"])
def test_imports_point_down(module: str) -> None:
    assert room(module) in RANK, f"{module}: say in FLOORS where it belongs"
    for target in imports(MODULES[module]):
        assert RANK[room(target)] <= RANK[room(module)], f"{module} imports {target}, which stands above it"
        if room(module) == "recipes" == room(target):
            assert target.split(".")[1].startswith("_"), f"{module} imports {target}: recipes never import one another"


def test_no_file_reaches_itself() -> None:
    graph = {name: imports(path) & set(MODULES) for name, path in MODULES.items()}
    while free := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in free:
            del graph[name]
    # What is left is on a circle or above one.
    assert not graph, f"circles among {sorted(graph)}"


def test_the_house_is_small_enough_to_be_read() -> None:
    rooms = {path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert len(rooms) <= MAX_ROOMS
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: number for name, number in lines.items() if number > MAX_LINES} == {}
    assert sorted(lines.values())[len(lines) // 2] <= MAX_MEDIAN_LINES


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, distill_lab.cli as cli; cli.main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "scipy", "pydantic", "tyro", "rich"} & set(loaded)


def test_layer_rules_would_notice_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from distill_lab.recipes import system1\n    import distill_lab.cli\n")
    assert imports(file) == {"recipes.system1", "cli"}
    assert RANK["cli"] > RANK["recipes"] > RANK["train"]
