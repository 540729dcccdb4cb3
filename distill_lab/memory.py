"""Memory: out of memory told from other errors, given back before a smaller try, and kept between a training's steps."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Numbers of glibc's mallopt(3)."""
DEFAULTS = {M_TRIM_THRESHOLD: 128 << 10, M_MMAP_THRESHOLD: 128 << 10, M_MMAP_MAX: 65536}

SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""In what errors say. cuBLAS makes its workspace at the first product: a full GPU shows as one of its own errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's or the host's memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return any(sign in text for sign in SIGNS)


def free_memory() -> None:
    """Give back what nothing refers to. After a failed try, outside of its except block: a traceback holds tensors."""
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
