"""What this machine has: asked without importing torch where that would take long."""

from __future__ import annotations


def has_gpu() -> bool:
    """Whether torch can compute on an accelerator here (CUDA, ROCm or Apple's MPS)."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
