"""`distill doctor`: a GPU that torch does not see is told from none, and where vLLM is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from distill_lab import device
from distill_lab.commands import doctor
from distill_lab.generation.engines import _vllm_install


def fake_nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def test_a_gpu_that_torch_does_not_see_is_named(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvidia_smi(tools, "echo 'Tesla T4, 535.104.05'; echo 'Tesla T4, 535.104.05'")
    assert device.nvidia_gpus() == ["Tesla T4, driver 535.104.05"] * 2
    reasons = {
        (None, None): "is a build for CPUs; install torch with CUDA",
        ("13.0", ""): "CUDA_VISIBLE_DEVICES='' hides GPUs; unset it",
        ("13.0", None): "needs a driver for CUDA 13.0",
    }
    for (cuda, visible), reason in reasons.items():
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        doctor.main(doctor.Config())
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("GPU")]
        assert "torch sees none, the driver sees Tesla T4, driver 535.104.05" in line
        assert reason in line


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found' >&2; exit 6"])
def test_a_driver_without_gpus_is_no_gpu(tools: Path, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    fake_nvidia_smi(tools, script)
    doctor.main(doctor.Config())
    assert "GPU         none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, "vLLM        not in this environment"),
        ("0.33.0", "vLLM        0.33.0 in"),
        ("0.20.0", "older than 0.32.0, too old for the lab"),
    ],
)
def test_where_vllm_is(
    found: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_vllm_install, "installed", lambda: found)
    doctor.main(doctor.Config())
    assert expected in capsys.readouterr().out
