"""What NVIDIA's driver says of this machine's GPUs: one that torch cannot use is told from none."""

from __future__ import annotations

import os
import subprocess

NVIDIA_SMI_S = 10.0
"""How long NVIDIA's tool may take to answer."""


def nvidia_gpus() -> list[str]:
    """The GPUs that NVIDIA's driver sees, each "NAME, driver VERSION", whatever torch sees; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        ", driver ".join(part.strip() for part in line.rsplit(",", 1)) for line in found.splitlines() if line.strip()
    ]


def why_torch_sees_none() -> str:
    """What most probably keeps torch from a GPU that NVIDIA's driver sees, and what to do about it."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for CPUs; install torch with CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides GPUs; unset it"
    return (
        f"torch {torch.__version__} wants the driver of CUDA {torch.version.cuda} and GPUs its build has code for; update "
        "the driver, or install a torch for an older CUDA"
    )
