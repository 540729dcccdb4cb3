"""Imports point down only: faces -> recipes -> line -> stages -> plug-ins -> ground. Held by reading every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distill_lab"
LAYERS = (
    (
        "ground",
        "errors types config run prompts chat control_tokens answers watch hardware precision memory "
        "yaml_config tiny engine_died nvidia vllm_install orphans cache_folder fingerprints activity "
        "cut_answers locks outputs claims redact known_models".split(),
    ),
    (
        "plug-ins",
        "adapters tied engines graders objectives train models sampling kv_cache stopping sources json_array "
        "traces background http_retry chat_completions decoding token_io cluster request_cache identity "
        "own_sampling machine model_shape memory_plan method presets".split(),
    ),
    (
        "stages",
        "data generate training_set held_out grade evaluate measure compare ask steps reasoning selection token_stats "
        "measure_plan peak_memory verdict best_of_k cot_files prompt_data label_report answer_cost "
        "generation_progress preflight ".split(),
    ),
    ("report", ["report"]),
    ("line", ["line", "prompt_proof", "publish"]),
    ("recipes", ["recipes", "easydistill"]),
    ("documents", ["hardware_table"]),
    ("faces", "cli commands terminal".split()),
)
RANK = {name: rank for rank, (_, names) in enumerate(LAYERS) for name in names}
ALLOWED_UP = {("tiny.build", "engines"), ("tiny.build", "train"), ("tiny.table", "*")}
"""The family is made with the lab's own engine; nothing imports these two."""


def modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def imports(path: Path) -> set[str]:
    """What a file imports of this package, without the package's name; whether at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distill_lab"):
            base = node.module.removeprefix("distill_lab").lstrip(".")
            found |= {base} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("distill_lab.") for a in node.names if a.name.startswith("distill_lab.")}
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    top = module.split(".")[0]
    if top in ("", "__init__"):
        return
    assert top in RANK, f"{module}: say in LAYERS where it belongs"
    for target in imports(path):
        name = target.split(".")[0]
        if (module, name) in ALLOWED_UP or (module, "*") in ALLOWED_UP or name in ("", "__version__"):
            continue
        assert RANK[name] <= RANK[top], f"{module} imports {target}, which stands above it"
        if top == "recipes" and name == "recipes":
            pytest.fail(f"{module} imports {target}: recipes never import one another")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, distill_lab.cli as cli; cli.main(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "scipy", "pydantic", "tyro", "rich"} & set(loaded)


def test_layer_rules_would_notice_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from distill_lab.recipes import system1\n    import distill_lab.cli\n")
    assert imports(file) == {"recipes", "cli"}
