"""Find this machine's device, the memory of one GPU or of the whole machine, and the RAM.

A container's limit (cgroup) counts as the machine's memory, because the kernel kills processes that exceed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill_lab.device import best_device, host_memory

CONTEXT = 0.5e9
"""GPU memory in bytes that the driver and kernels take per process."""
PROCESSES = 2
"""Processes that may use a GPU at once: the one that trains or measures, plus a notebook's kernel or the run itself."""
RUNTIME = 1.5e9
"""Host memory in bytes for Python, torch, transformers and the operating system."""
GPU_SHARE, CPU_SHARE, MPS_SHARE = 0.96, 0.92, 0.7
"""Usable fraction of the memory; the rest is lost to fragmentation and, on a desktop, to other programs."""


@dataclass(frozen=True)
class Machine:
    """The machine on which models are trained and run."""

    device: Literal["cuda", "mps", "cpu"]
    memory: float
    """Bytes of one GPU, or of the machine if it uses the CPU or shares its memory with the GPU."""
    ram: float
    """Bytes of host memory."""
    compute: Literal["fp32", "bf16", "fp16"]
    """Default compute dtype of training."""
    num_gpus: int = 1

    @property
    def usable(self) -> float:
        """Bytes on the device that one model can use."""
        if self.device == "cuda":
            return GPU_SHARE * self.memory - PROCESSES * CONTEXT
        return (CPU_SHARE if self.device == "cpu" else MPS_SHARE) * self.memory - RUNTIME

    @property
    def usable_ram(self) -> float:
        """Bytes of host memory that loading and saving a model can use."""
        return CPU_SHARE * self.ram - RUNTIME

    def __str__(self) -> str:
        return {"cuda": "this GPU", "mps": "this Mac", "cpu": "this machine"}[self.device]


def this_machine() -> Machine:
    """The machine this process runs on."""
    import torch

    from distill_lab.models.precision import compute_dtype

    device, ram = best_device(), host_memory()
    memory, num_gpus = ram, 1
    if device.type == "cuda":
        memory, num_gpus = torch.cuda.get_device_properties(device).total_memory, torch.cuda.device_count()
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kind = device.type if device.type in ("cuda", "mps") else "cpu"
    return Machine(kind, memory, ram, names[compute_dtype(device)], num_gpus)  # pyright: ignore[reportArgumentType]
