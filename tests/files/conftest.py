"""Three questions, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.files.jsonl import write_jsonl


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions with gold answers."""
    path = tmp_path / "data.jsonl"
    write_jsonl(path, ({"question": f"{n} plus 1?", "answer": str(n + 1)} for n in range(3)))
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command's exit code and all that it printed."""

    def distill(*arguments: Any) -> tuple[int, str]:
        code = cli.main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return distill
