"""docs/extending.md: every file in it is saved in a copy of the package and used as the page says; one file each."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.architecture import PACKAGE, ROOT, floors

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
FILE = re.compile(r"^`(distill_lab/[\w/]+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def new_file(title: str) -> tuple[str, str]:
    """Path and content of a section's one new file."""
    [(path, content)] = FILE.findall(SECTIONS[title])
    return path, content


def package_with(title: str, folder: Path) -> None:
    """A copy of the package in `folder`, and in it the section's file, which no file of the package is replaced by."""
    shutil.copytree(PACKAGE, folder / "distill_lab", ignore=shutil.ignore_patterns("family", "__pycache__"))
    (folder / "distill_lab" / "tiny" / "family").symlink_to(PACKAGE / "tiny" / "family")
    path, content = new_file(title)
    assert not (folder / path).exists()
    (folder / path).write_text(content, encoding="utf-8")


def run(arguments: list[str], folder: Path) -> str:
    """What a program prints that finds the copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["DISTILL_LAB_CACHE"] = "off"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def expected(code: str) -> str:
    """The comments at the end of a program: what it prints."""
    lines = code.rstrip("\n").split("\n")
    start = len(lines)
    while lines[start - 1].startswith("# "):
        start -= 1
    return "".join(f"{line.removeprefix('# ')}\n" for line in lines[start:])


@pytest.mark.parametrize("title", SECTIONS)
def test_it_works_as_written(title: str, tmp_path: Path) -> None:
    package_with(title, tmp_path)
    assert run(["-c", "import distill_lab; print(distill_lab.__file__)"], tmp_path).startswith(str(tmp_path))
    programs = [block for block in BLOCK.findall(SECTIONS[title]) if block[1] != new_file(title)[1]]
    assert programs
    for language, code in programs:
        if language == "python":
            assert run(["-c", code], tmp_path) == expected(code)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                command, *arguments = shlex.split(line)
                assert command == "distill"
                run(["-m", "distill_lab.cli", *arguments], tmp_path)


@pytest.mark.parametrize("title", SECTIONS)
def test_it_keeps_the_rules_of_the_code(title: str) -> None:
    path, content = new_file(title)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--stdin-filename", str(ROOT / path), "-"]
        done = subprocess.run(command, cwd=ROOT, input=content, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    rank = {room: number for number, rooms in enumerate(floors()) for room in rooms}
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distill_lab"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                target = name.split(".")[1:2]
                assert not target or rank.get(target[0], 0) <= rank[path.split("/")[1]], name


def test_the_table_names_every_section() -> None:
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \| `(.*?)NAME\.py` \|", TEXT, re.MULTILINE)
    assert [(title.capitalize(), link) for title, link, _ in rows] == [
        (title, title.lower().replace(" ", "-")) for title in SECTIONS
    ]
    assert [f"{folder}" for *_, folder in rows] == [f"{Path(new_file(title)[0]).parent}/" for title in SECTIONS]
