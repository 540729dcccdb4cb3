"""This machine's device, fastest dtype (timed), memory, and the GPUs that NVIDIA's driver reports.

torch is imported only where it is needed.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int]
"""Input and output features of a linear layer."""

MIN_GAIN = 1.3
"""Minimum speedup of bf16 over fp32 to be chosen on a CPU, because bf16 rounds more."""
MIN_WEIGHTS = 1 << 25
"""Models with fewer weights in linear layers compute in fp32 on a CPU: matrix products are little of their time."""
ROWS = (8, 64)
"""Rows of the timed products: several answers decoded together, and a short prompt."""
NUM_TIMED, MAX_SIDE, NUM_ROUNDS = 2, 2048, 5
"""How many shapes to time (those with the most weights); their maximum input and output size; how many rounds."""

FINE_S = 1e-5
"""Maximum clock resolution, in seconds, for timing short products."""


def has_gpu() -> bool:
    """Whether torch can compute on an accelerator here (CUDA, ROCm or Apple's MPS)."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def device_name(device: torch.device) -> str:
    """Name of a device, such as `NVIDIA A10G, 24 GB` or `AMD EPYC 9R14, 8 threads`."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {total_memory(device) / 1e9:.0f} GB"
    if device.type != "cpu":
        return f"{device.type} of {platform.machine()}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"


def total_memory(device: torch.device) -> int:
    """Total memory of a CUDA GPU in bytes, used or not."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory


def fastest_dtype(shapes: Iterable[Shape], *, rows: tuple[int, ...] = ROWS) -> torch.dtype:
    """fp32 or bf16, whichever multiplies weights of these shapes faster on this CPU.

    shapes: one for each linear layer of a model, with repetitions. rows: number of input rows to time. Takes some
    hundredths of a second the first time. bf16 must be clearly faster (MIN_GAIN); models too small to benefit
    (MIN_WEIGHTS) are not timed.
    """
    import torch

    return torch.bfloat16 if bf16_gain(shapes, rows=rows) >= MIN_GAIN else torch.float32


def bf16_gain(shapes: Iterable[Shape], *, rows: tuple[int, ...] = ROWS) -> float:
    """Speedup of bf16 over fp32 matrix products on this CPU; 0 for a model too small to be timed.

    Timed because no CPU flag predicts it: it is 2 to 8 with bf16 units (AVX512-BF16, AMX), as low as 0.01 without them,
    and depends on the library's kernels in both cases. Measured once per process and number of threads.
    """
    import torch

    counts = Counter(shapes)
    weights = {shape: shape[0] * shape[1] * count for shape, count in counts.items()}
    if sum(weights.values()) < MIN_WEIGHTS:
        return 0.0
    most = sorted(weights, key=lambda shape: (-weights[shape], shape))[:NUM_TIMED]
    return _gain(tuple((shape, counts[shape]) for shape in most), rows, torch.get_num_threads())


@cache
def _gain(shapes: tuple[tuple[Shape, int], ...], rows: tuple[int, ...], num_threads: int) -> float:
    """See `bf16_gain`. num_threads: only part of the cache key."""
    import torch

    slow = fast = 0.0
    # CPU time of all threads, so that other processes on a busy machine do not distort the result.
    fine = time.get_clock_info("process_time").resolution < FINE_S
    clock = time.process_time if fine else time.perf_counter
    with torch.inference_mode():
        for (inputs, outputs), count in shapes:
            weight = torch.randn(min(outputs, MAX_SIDE), min(inputs, MAX_SIDE))
            weights = weight, weight.bfloat16()
            for num_rows in rows:
                hidden = torch.randn(num_rows, weight.shape[1])
                best = [float("inf")] * 2
                # Alternate the two and keep the best time of each: other processes may evict the CPU caches.
                for turn in range(1 + NUM_ROUNDS):
                    for place, pair in enumerate(zip((hidden, hidden.bfloat16()), weights, strict=True)):
                        start = clock()
                        torch.nn.functional.linear(*pair)
                        if turn:  # the first round sets up kernels
                            best[place] = min(best[place], clock() - start)
                    if turn and best[1] > 4 * best[0]:
                        return best[0] / best[1]  # a CPU without bf16 units: the rest would take seconds
                slow, fast = slow + count * best[0], fast + count * best[1]
    return slow / fast


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""Parts of error messages. cuBLAS allocates its workspace at the first product, so a full GPU raises a cuBLAS error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that GPU or host memory ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return any(sign in text for sign in SIGNS)


def free_memory() -> None:
    """Free unreferenced memory. After a failure, call it outside the except block: the traceback keeps tensors alive."""
    gc.collect()
    return_gpu_memory()


def return_gpu_memory() -> None:
    """Let the GPU's other users have what PyTorch keeps of freed tensors; collects no garbage, which takes half a second."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_returned() -> Iterator[None]:
    """A block that holds a model: free unused memory before it, and the block's own memory after it.

    PyTorch keeps freed GPU memory for itself, so that no other process can use it, and reference cycles keep their tensors
    until the garbage collector runs.
    """
    free_memory()
    try:
        yield
    finally:
        free_memory()


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with a container's memory limit, for cgroup versions 2 and 1."""


def host_memory(limits: tuple[str, ...] = LIMITS) -> int:
    """Bytes of this machine's memory, or of its container's limit, as given in the files `limits`."""
    import psutil

    found = [psutil.virtual_memory().total]
    for path in limits:
        try:
            found.append(int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return min(found)


def free_host_memory() -> int:
    """Bytes of host memory that this process can still take."""
    import psutil

    return min(psutil.virtual_memory().available, host_memory() - psutil.Process().memory_info().rss)


NVIDIA_SMI_S = 10.0
"""Timeout for nvidia-smi, in seconds."""


def nvidia_gpus() -> list[str]:
    """GPUs that NVIDIA's driver reports, each as "NAME, driver VERSION", even if torch sees none; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        ", driver ".join(part.strip() for part in line.rsplit(",", 1)) for line in found.splitlines() if line.strip()
    ]


def why_torch_sees_none() -> str:
    """The most likely reason why torch cannot use a GPU that NVIDIA's driver reports, and how to fix it."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build for CPUs; install torch with CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides GPUs; unset it"
    return (
        f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda} and a GPU its build supports; update the "
        "driver, or install a torch build for an older CUDA version"
    )


def best_device() -> torch.device:
    """The first CUDA GPU, Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
