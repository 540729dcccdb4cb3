"""docs/reliability.md names tests that exist, and SECURITY.md what the package does."""

from __future__ import annotations

import ast
import re

import pytest

from distill_lab.settings.secrets import ENVIRONMENT
from scripts.architecture import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_a_test() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| fault |", "| file |"))
    ]
    assert len(rows) >= 45
    assert [row for row in rows if "::test_" not in row] == []
    assert len(set(NAMED)) == len(NAMED)


def test_security_names_what_is_kept_secret() -> None:
    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "OPENAI_API_KEY" in security
    assert "OPENAI_API_KEY" in ENVIRONMENT
    assert "docs/reliability.md" in security
