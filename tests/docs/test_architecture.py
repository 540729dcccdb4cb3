"""docs/architecture.md names files and functions that exist, and its picture is the one that the imports make."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.architecture import PACKAGE, PICTURE, ROOT, STAIRS, draw, floors

TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT)))
PATHS = sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", TEXT)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_it_names_what_exists(file: str, name: str) -> None:
    body = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part]
        assert found, f"{file} has no {name}"
        body = found[0].body


def test_there_is_something_to_check() -> None:
    assert len(NAMED) > 30
    assert {file.split("/")[0] for file, _ in NAMED} >= set(STAIRS)


@pytest.mark.parametrize("path", PATHS)
def test_paths_exist(path: str) -> None:
    in_a_run = ("student/", "distill_lab/")
    assert path in in_a_run or (PACKAGE / path).exists() or (ROOT / path).exists()


def test_the_picture_is_that_of_the_imports() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run: python -m scripts.architecture"


def test_every_room_is_in_the_picture() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    for rooms in floors():
        for room in rooms:
            assert re.search(rf">(ground: .*\b)?{room}\b[^<]*</text>", picture), room
