"""Checks on a GPU, each a process of its own, and the same checks on the CPU with models of some thousand weights.

`make test-gpu` runs them where there is a CUDA GPU (about half an hour on a large one); without one each says that it was
skipped. The small ones run everywhere, so that no check rots between two visits to a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill_lab.generation.engines._vllm_install import installed
from tests.gpu.checks import CHECKS, Setting, load_all
from tests.helpers import ROOT

load_all()
SLACK_BYTES = 600 << 20
"""What a process may leave of the GPU's memory: none, but a driver's own figure moves."""
ON_CPU_ELSEWHERE = {
    "stage-memory": "tests/recipes/test_system1.py runs the recipe on a CPU",
    "judge": "tests/grading/test_judge.py runs it on a CPU",
    "vllm": "tests/generation/engines/test_vllm.py runs it on a CPU",
    "measure-time": "tests/evaluation/test_speed.py runs it on a CPU",
    "suite": "tests/conftest.py and all beside it: make test",
    "notebook": "tests/test_notebook.py runs it on a CPU",
    "train-speed": "benchmarks/sft.py is timed on a CPU for RESULTS.md",
}
"""Checks that are whole commands, which other tests run on a CPU."""


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models are written here once."""
    return tmp_path_factory.mktemp("gpu")


def memory_in_use() -> int:
    """Bytes of the first GPU that any process holds, as its driver says."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) << 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_gpu(name: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = memory_in_use()
    command = [sys.executable, "-m", "tests.gpu.checks", name, "--scratch", str(scratch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n{name}: {torch.cuda.get_device_name()}: {figures}")
    assert abs(memory_in_use() - before) < SLACK_BYTES
    if "skipped" in figures:
        pytest.skip(figures["skipped"])


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in ON_CPU_ELSEWHERE])
@pytest.mark.slow
def test_the_check_itself_on_a_cpu(name: str, scratch: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("the check runs on the GPU here")
    figures = CHECKS[name](Setting(scratch, small=True))
    json.dumps(figures)
    if "skipped" in figures:
        pytest.skip(figures["skipped"])


def test_every_check_is_small_somewhere() -> None:
    assert ON_CPU_ELSEWHERE.keys() < CHECKS.keys()
    assert installed() is None or "vllm" in CHECKS
    for reason in ON_CPU_ELSEWHERE.values():
        assert (ROOT / reason.split()[0]).is_file()
