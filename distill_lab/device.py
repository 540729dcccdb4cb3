"""This machine: its device, its fastest dtype (timed), its memory, and what NVIDIA's driver says.

torch is imported only where it is needed.
"""

from __future__ import annotations

import ctypes
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
"""Inputs and outputs of a linear layer."""

MIN_GAIN = 1.3
"""How many times as fast bf16 has to be to be chosen on a CPU: it rounds more than fp32 does."""
MIN_WEIGHTS = 1 << 25
"""Models with fewer weights in their linear layers compute in fp32 on a CPU: most of their time is not in products."""
ROWS = (8, 64)
"""Rows of the products that are timed: some answers decoded together, and a short prompt."""
NUM_TIMED, MAX_SIDE, NUM_ROUNDS = 2, 2048, 5
"""How many of the shapes are timed, those with the most weights; the most inputs and outputs of each; how often."""

FINE_S = 1e-5
"""Resolution of a clock that short products can be timed with."""


def has_gpu() -> bool:
    """Whether torch can compute on an accelerator here (CUDA, ROCm or Apple's MPS)."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def device_name(device: torch.device) -> str:
    """What a device is called, as in `NVIDIA A10G, 24 GB` or `AMD EPYC 9R14, 8 threads`."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {total_memory(device) / 1e9:.0f} GB"
    if device.type != "cpu":
        return f"{device.type} of {platform.machine()}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'' if threads == 1 else 's'}"


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a CUDA GPU has, used or not."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory


def fastest_dtype(shapes: Iterable[Shape], *, rows: tuple[int, ...] = ROWS) -> torch.dtype:
    """fp32 or bf16, whichever multiplies by weights of these shapes faster on this CPU.

    shapes: of all linear layers of a model, repeated as often as the model has them. rows: of the inputs. Takes some
    hundredths of a second the first time. bf16 has to win clearly (MIN_GAIN), and models too small to gain from it
    (MIN_WEIGHTS) are not timed.
    """
    import torch

    return torch.bfloat16 if bf16_gain(shapes, rows=rows) >= MIN_GAIN else torch.float32


def bf16_gain(shapes: Iterable[Shape], *, rows: tuple[int, ...] = ROWS) -> float:
    """How many times as fast as in fp32 this CPU multiplies in bf16; 0 for a model too small to be timed.

    Timed because no flag of the processor says it: with units for bf16 (AVX512-BF16, AMX) it is a gain of 2 to 8, without
    them down to a hundredth, and either depends on the library's kernels. Counted once per process and number of threads.
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
    """See `bf16_gain`. num_threads: part of the cache's key."""
    import torch

    slow = fast = 0.0
    # The processor's time of all threads: what other processes take of a busy machine says nothing about a dtype.
    fine = time.get_clock_info("process_time").resolution < FINE_S
    clock = time.process_time if fine else time.perf_counter
    with torch.inference_mode():
        for (inputs, outputs), count in shapes:
            weight = torch.randn(min(outputs, MAX_SIDE), min(inputs, MAX_SIDE))
            weights = weight, weight.bfloat16()
            for num_rows in rows:
                hidden = torch.randn(num_rows, weight.shape[1])
                best = [float("inf")] * 2
                # In turns and the best of several: other processes may take the processor's caches.
                for turn in range(1 + NUM_ROUNDS):
                    for place, pair in enumerate(zip((hidden, hidden.bfloat16()), weights, strict=True)):
                        start = clock()
                        torch.nn.functional.linear(*pair)
                        if turn:  # the first one sets kernels up
                            best[place] = min(best[place], clock() - start)
                    if turn and best[1] > 4 * best[0]:
                        return best[0] / best[1]  # a CPU without such units: the rest would take seconds
                slow, fast = slow + count * best[0], fast + count * best[1]
    return slow / fast


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Numbers of glibc's mallopt(3)."""
DEFAULTS = {M_TRIM_THRESHOLD: 128 << 10, M_MMAP_THRESHOLD: 128 << 10, M_MMAP_MAX: 65536}
SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""In what errors say. cuBLAS makes its workspace at the first product: a full GPU shows as one of its own errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's or the host's memory did not suffice."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return any(sign in text for sign in SIGNS)


def free_memory() -> None:
    """Give back what nothing refers to. After a failed try, outside of its except block: a traceback holds tensors."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_returned() -> Iterator[None]:
    """A block that holds a model: memory that was held before is given back first, and its own afterwards.

    PyTorch keeps what it freed for itself, on a GPU where no other process gets it, and a cycle of objects keeps its
    tensors until the garbage collector comes by.
    """
    free_memory()
    try:
        yield
    finally:
        free_memory()


@contextmanager
def kept_heap() -> Iterator[None]:
    """Let the C library keep freed host memory for the next tensor, and give it back at the end.

    glibc maps large blocks anew each time and unmaps them when they are freed, so that a training on a CPU pays a page
    fault for every 4 KiB of every activation of every step: a third of the time of a step of a Qwen2.5-0.5B. Elsewhere
    than on Linux with glibc, nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        for parameter, value in DEFAULTS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


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


def best_device() -> torch.device:
    """The first CUDA GPU, Apple's GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
