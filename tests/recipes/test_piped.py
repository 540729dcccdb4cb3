"""A recipe whose output goes to a pipe, a log or a notebook cell prints a line now and then, and no progress bars."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
MAX_LINES = 100
"""Stages, their counts and the result take about 50; a bar that is printed at each refresh takes thousands."""


@pytest.mark.parametrize("color", [{}, {"FORCE_COLOR": "1"}], ids=["pipe", "notebook"])
def test_a_piped_recipe_prints_few_lines(color: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill_lab.cli", "system1", "--preset", "tiny", "--run", str(tmp_path / "run")]
    command += ["--data.split", "distill[:64]", "--test.split", "test[:8]", "--train.num-epochs", "2", "--no-measure"]
    environment = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    environment |= {"DISTILL_LAB_CACHE": "off", "COLUMNS": "80", **color}
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
    lines = done.stdout.splitlines()
    assert 10 < len(lines) <= MAX_LINES, done.stdout
    printed = done.stdout + done.stderr
    assert "\r" not in printed
    assert not re.search(r"\x1b\[\??[\d;]*[A-HJKSTfhlsu]", printed), "moves the cursor or erases"
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert [line for line in plain if line == "> student"] == ["> student"]
    assert "━" not in printed
