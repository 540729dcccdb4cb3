"""docs/extending.md: every file in it is saved in a copy of the package and used as the page says; one file each.

One process runs all programs of the page, each section in its folder, because starting Python, torch and
transformers takes longer than most of them. That no file needs another one is checked from its imports.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


DRIVER = """
import contextlib, io, json, os, sys, traceback
import distill_lab
from distill_lab import cli

done = [["", distill_lab.__file__]]
for title, programs in json.load(sys.stdin).items():
    os.makedirs(title)
    os.chdir(title)
    for language, code in programs:
        printed, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            try:
                if language == "python":
                    exec(compile(code, title, "exec"), {"__name__": "example"})
                else:
                    assert all(cli.main(words) == 0 for words in code)
            except BaseException:
                said.write(traceback.format_exc())
                printed.write(said.getvalue() + " FAILED")
        done.append([title, printed.getvalue()])
    os.chdir("..")
print("RESULT " + json.dumps(done))
"""


def package_with_all(folder: Path) -> None:
    """A copy of the package in `folder`, and in it the page's files, which no file of the package is replaced by."""
    shutil.copytree(PACKAGE, folder / "distill_lab", ignore=shutil.ignore_patterns("family", "__pycache__"))
    (folder / "distill_lab" / "tiny" / "family").symlink_to(PACKAGE / "tiny" / "family")
    for title in SECTIONS:
        path, content = new_file(title)
        assert not (folder / path).exists()
        (folder / path).write_text(content, encoding="utf-8")


def programs(title: str) -> list[tuple[str, str]]:
    """Language and code of a section's programs: all its blocks but the new file."""
    return [block for block in BLOCK.findall(SECTIONS[title]) if block[1] != new_file(title)[1]]


def words(code: str) -> list[list[str]]:
    """The arguments of each `distill` command in a shell block."""
    lines = [shlex.split(line) for line in code.replace("\\\n", " ").splitlines()]
    assert all(command == "distill" for command, *_ in lines)
    return [arguments for _, *arguments in lines]


def run(given: Mapping[str, Sequence[Sequence[object]]], folder: Path) -> list[list[str]]:
    """Title and output of each program, by one process that finds the copy of the package; the first is its place."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["DISTILL_LAB_CACHE"] = "off"
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(
        command, cwd=folder, env=environment, input=json.dumps(given), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def expected(code: str) -> str:
    """The comments at the end of a program: what it prints."""
    lines = code.rstrip("\n").split("\n")
    start = len(lines)
    while lines[start - 1].startswith("# "):
        start -= 1
    return "".join(f"{line.removeprefix('# ')}\n" for line in lines[start:])


def test_it_works_as_written(tmp_path: Path) -> None:
    package_with_all(tmp_path)
    given = {
        title: [[language, words(code) if language == "sh" else code] for language, code in programs(title)]
        for title in SECTIONS
    }
    assert all(given.values())
    (_, place), *results = run(given, tmp_path)
    assert place.startswith(str(tmp_path))
    written = [(title, language, code) for title in SECTIONS for language, code in programs(title)]
    for (title, language, code), (ran, printed) in zip(written, results, strict=True):
        assert ran == title
        assert not printed.endswith(" FAILED"), f"{title}\n{printed[-3000:]}"
        assert language == "sh" or printed == expected(code), title


@pytest.mark.parametrize("title", SECTIONS)
def test_it_keeps_the_rules_of_the_code(title: str) -> None:
    path, content = new_file(title)
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--stdin-filename", str(ROOT / path), "-"]
        done = subprocess.run(command, cwd=ROOT, input=content, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    names = {Path(new_file(other)[0]).stem for other in SECTIONS if other != title}
    rank = {room: number for number, rooms in enumerate(floors()) for room in rooms}
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distill_lab"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                target = name.split(".")[1:2]
                assert not target or rank.get(target[0], 0) <= rank[path.split("/")[1]], name
                assert not names & set(name.split(".")), f"{title} needs another section's file: {name}"


def test_the_table_names_every_section() -> None:
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \| `(.*?)NAME\.py` \|", TEXT, re.MULTILINE)
    assert [(title.capitalize(), link) for title, link, _ in rows] == [
        (title, title.lower().replace(" ", "-")) for title in SECTIONS
    ]
    assert [f"{folder}" for *_, folder in rows] == [f"{Path(new_file(title)[0]).parent}/" for title in SECTIONS]
