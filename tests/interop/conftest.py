"""Strangers to the lab: programs in .venv-interop that open what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

PYTHON = Path(os.environ.get("DISTILL_LAB_INTEROP", ROOT / ".venv-interop" / "bin" / "python"))


@pytest.fixture
def interop_python() -> Path:
    """The Python of the other environment; the test is skipped without it."""
    if not PYTHON.is_file():
        pytest.skip("no environment with transformers 4: run make test-interop")
    return PYTHON


@pytest.fixture
def strangers(interop_python: Path, tmp_path: Path) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """`strangers(jobs)`: what reader.py answers, in an environment that has nothing of the lab."""

    def ask(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        request, answer = tmp_path / "request.json", tmp_path / "answer.json"
        request.write_text(json.dumps(jobs), encoding="utf-8")
        script = Path(__file__).with_name("reader.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [interop_python, script, request, answer],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(answer.read_text(encoding="utf-8"))
        assert all(row.get("version", "4.").startswith("4.") for row in found)
        return found

    return ask
