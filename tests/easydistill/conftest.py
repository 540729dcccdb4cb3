"""A folder for each test, and instructions in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.easydistill.jobs import ROWS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def instructions(folder: Path) -> None:
    """ROWS in `in.json`."""
    (folder / "in.json").write_text(json.dumps(ROWS))
