"""Out of memory: how to tell it from other errors, and how to give memory back before a smaller try."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU's or the host's memory did not suffice."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "out of memory" in text


def free_memory() -> None:
    """Give back what a failed try holds. To be called outside of its except block, whose traceback holds tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
