"""What the README tells people to type exists: commands and flags parse, make targets are there, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from distill_lab import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = [
    line.strip().removeprefix(".venv/bin/")
    for line in README.splitlines()
    if re.match(r"    (\.venv/bin/)?distill \w", line)
]


@pytest.mark.parametrize("line", TYPED)
def test_commands_parse(line: str) -> None:
    words = shlex.split(re.split(r"\s{4,}", line)[0])
    assert words[0] == "distill"
    name, arguments = words[1], words[2:]
    package = cli._package_of(name)
    module = importlib.import_module(f"distill_lab.{package}.{name}")
    if package == "recipes":
        options, rest = cli._take_options(arguments, ("preset", "config", "run"))
        base = module.PRESETS[options.get("preset", "tiny")]
        assert cli._flags(module.Config, base, rest, prog="distill", description="") is not None
    else:
        assert not arguments


def test_there_is_something_to_check() -> None:
    assert {"system1", "demo", "compare"} <= {line.split()[1] for line in TYPED}


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_python_example_names_what_there_is() -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(example)
    # Without the run itself and the print after it: those take a GPU.
    tree.body = [node for node in tree.body if isinstance(node, ast.ImportFrom) or "Config(" in ast.unparse(node)]
    names: dict[str, object] = {}
    exec(compile(tree, "README", "exec"), names)
    assert names["config"]
