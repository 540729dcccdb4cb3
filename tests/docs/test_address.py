"""No file names an address that does not exist, and `make address` writes one into every place, again and again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.address import write
from scripts.architecture import ROOT

NAMED = ("README.md", "notebook.ipynb", "CITATION.cff", "CHANGELOG.md", "pyproject.toml")
URL = "https://github.com/someone/qwen-distillation-lab"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in NAMED:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def text_of(folder: Path) -> str:
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in NAMED)


def test_no_file_has_a_placeholder_in_an_address() -> None:
    assert not re.findall(r"https?://\S*\b(?:OWNER|USER|ORG)\b\S*", text_of(ROOT))


def test_every_place_gets_the_address_and_a_second_one_replaces_it(copy: Path) -> None:
    assert set(write("https://github.com/first/elsewhere", copy)) == set(NAMED)
    first = text_of(copy)
    assert write("https://github.com/first/elsewhere", copy) == []
    write(URL, copy)
    assert "first/elsewhere" in first
    assert "first/elsewhere" not in text_of(copy)
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert "(https://colab.research.google.com/github/someone/qwen-distillation-lab/blob/main/notebook.ipynb)" in readme
    assert f"git clone {URL} qwen-distillation-lab && cd" in readme
    notebook = (copy / "notebook.ipynb").read_text(encoding="utf-8")
    lines = [line for cell in json.loads(notebook)["cells"] for line in cell["source"]]
    assert any(line.startswith(f'REPOSITORY = "{URL}"  # @param') for line in lines)
    assert f"\nrepository-code: {URL}\n" in (copy / "CITATION.cff").read_text(encoding="utf-8")
    assert f"[Unreleased]: {URL}/commits/main" in (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    project = (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert project.count("[project.urls]") == 1
    assert f'Repository = "{URL}"' in project


def test_another_host_keeps_the_badge_on_colabs_own_page(copy: Path) -> None:
    write("https://git.example.org/group/lab", copy)
    assert "(https://colab.research.google.com/github/)" in (copy / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], [""], ["someone/qwen-distillation-lab"], ["https://github.com/a b"]])
def test_what_is_not_an_address_changes_nothing(arguments: list[str]) -> None:
    before = text_of(ROOT)
    script = [sys.executable, str(ROOT / "scripts" / "address.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, "usage: make address URL=" in done.stderr) == (2, True)
    assert text_of(ROOT) == before
