"""The README: make targets and links exist, and its layout is the tree. tests/docs reads its commands."""

from __future__ import annotations

import re

from scripts.architecture import PACKAGE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_first_page_names_both_commands_and_each_sets_up_by_itself() -> None:
    first_page = README[: README.index("\n## ", README.index("\n## ") + 1)]
    assert re.findall(r"^    make (\w+)", first_page, re.MULTILINE) == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^(\S+):(?!=) *([^#\n]*)", makefile, re.MULTILINE))

    def needs(target: str) -> set[str]:
        found = set(rules.get(target, "").split())
        return found.union(*(needs(name) for name in found))

    for target in ("demo", "test"):
        assert "$(VENV)/installed" in needs(target), target
    assert "$(VENV)/installed-dev" in needs("test")


def test_the_layout_is_the_tree() -> None:
    layout = README.split("\n## Layout\n")[1].split("\n## ")[0]
    named = re.findall(r"^( {4}| {6})(?! )(.*?)(?: {2,}|$)", layout, re.MULTILINE)
    inside = {name.rstrip("/") for indent, names in named if len(indent) == 6 for name in names.split()}
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert inside == there - {"__init__.py", "__pycache__"}
    outside = {name for indent, names in named if len(indent) == 4 for name in names.split()}
    for name in outside:
        assert (ROOT / name).exists(), name
    assert {"distill_lab/", "docs/", "examples/", "scripts/", "tests/", "benchmarks/"} <= outside
