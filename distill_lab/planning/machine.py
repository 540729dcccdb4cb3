"""How much memory there is: this machine -> its device, the memory of one GPU or of the whole machine, and the RAM.

Limits of a container (cgroup) count as the machine's memory, because the kernel ends whoever goes beyond them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CONTEXT = 0.5e9
"""Bytes of a GPU that its driver and kernels take for each process that uses it."""
PROCESSES = 2
"""That may use a GPU at once: a notebook's kernel, or the run itself, beside the process that trains or measures."""
RUNTIME = 1.5e9
"""Bytes of host memory that Python, torch, transformers and the system beside them take."""
GPU_SHARE, CPU_SHARE, MPS_SHARE = 0.96, 0.92, 0.7
"""Share of the memory that can be counted on: the rest is lost between blocks, and on a desktop other programs have it."""


@dataclass(frozen=True)
class Machine:
    """What a model is trained and asked on."""

    device: Literal["cuda", "mps", "cpu"]
    memory: float
    """Bytes of one GPU, or of the machine where it computes on the CPU or shares its memory with the GPU."""
    ram: float
    """Bytes of the host's memory."""
    compute: Literal["fp32", "bf16", "fp16"]
    """What a training computes in by itself."""
    num_gpus: int = 1

    @property
    def usable(self) -> float:
        """Bytes that one model's work can have on the device."""
        if self.device == "cuda":
            return GPU_SHARE * self.memory - PROCESSES * CONTEXT
        return (CPU_SHARE if self.device == "cpu" else MPS_SHARE) * self.memory - RUNTIME

    @property
    def usable_ram(self) -> float:
        """Bytes of host memory that a model's loading and saving can have."""
        return CPU_SHARE * self.ram - RUNTIME

    def __str__(self) -> str:
        return {"cuda": "this GPU", "mps": "this Mac", "cpu": "this machine"}[self.device]


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with a container's limit, of cgroup version 2 and 1."""


def host_memory(limits: tuple[str, ...] = LIMITS) -> int:
    """Bytes of this machine's memory, or of its container's share, which the files `limits` give."""
    import psutil

    found = [psutil.virtual_memory().total]
    for path in limits:
        try:
            found.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return min(found)


def this_machine() -> Machine:
    """The machine this process runs on."""
    import torch

    from distill_lab.device import best_device
    from distill_lab.models.precision import compute_dtype

    device, ram = best_device(), host_memory()
    memory, num_gpus = ram, 1
    if device.type == "cuda":
        memory, num_gpus = torch.cuda.get_device_properties(device).total_memory, torch.cuda.device_count()
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kind = device.type if device.type in ("cuda", "mps") else "cpu"
    return Machine(kind, memory, ram, names[compute_dtype(device)], num_gpus)  # pyright: ignore[reportArgumentType]
