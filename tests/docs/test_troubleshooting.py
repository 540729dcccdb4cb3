"""docs/troubleshooting.md quotes messages of the package. tests/docs/test_commands.py reads its flags."""

from __future__ import annotations

import ast
import re

import pytest

from scripts.architecture import PACKAGE, ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.*)`$", TEXT, re.MULTILINE)


def texts() -> list[str]:
    """Every text of the package, `{}` for what an f-string puts in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


PACKAGE_TEXTS = "\0".join(texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_the_package_has_the_message(message: str) -> None:
    pattern = r"[^\0]*?".join(re.escape(part.strip()) for part in message.split("..."))
    assert re.search(pattern, PACKAGE_TEXTS), message


def test_there_is_something_to_check() -> None:
    assert len(MESSAGES) >= 10
