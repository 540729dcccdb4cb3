"""Freed host memory during training on a CPU: kept for the next tensor if there is plenty, else given back.

    with TrainingHeap(spare=free_host_memory) as heap:
        trainer.add_callback(heap)
        trainer.train()

By default glibc maps every large block and unmaps it when it is freed, so training pays a page fault for every 4 KiB of
every activation in every step: a quarter to a third of the step of Qwen2.5-0.5B. Blocks that are kept instead leave holes
that the next block of the same size does not fit. The process then holds up to all layers' activations more than it uses:
at Qwen2.5-0.5B with 2,048 tokens 4 GB with adapters, and 5 GB with gradient checkpointing, which is there to save memory.

So the first steps give memory back and show what a step takes; from then on it is kept if that much is spare as well.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from transformers import TrainerCallback

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameter numbers of glibc's mallopt(3)."""
DEFAULTS = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 65536}
"""What glibc's own thresholds rise to with the blocks that are freed; once set, they are fixed."""
RETURNED = {M_TRIM_THRESHOLD: 128 << 10, M_MMAP_THRESHOLD: 1 << 20, M_MMAP_MAX: 65536}
"""Blocks below a threshold as high as glibc's own would leave holes, too."""
KEPT = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0}
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WATCHED_STEP = 2
"""The first step creates the optimizer's states; the second one shows what every further step takes."""
MARGIN = 1.25
"""Spare memory over what a step takes for a while, from which on freed memory is kept."""


class TrainingHeap(TrainerCallback):
    """How the C library treats freed memory until the block ends. Does nothing but on Linux with glibc."""

    def __init__(self, spare: Callable[[], float], *, may_keep: bool = True) -> None:
        """spare: bytes of host memory that this process can still take. may_keep: False, always give memory back."""
        self._spare, self._may_keep = spare, may_keep
        self._steps = self._resting = 0
        self.kept = False
        """Whether freed memory is kept."""

    def __enter__(self) -> TrainingHeap:
        _set(RETURNED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set(DEFAULTS)
        if (libc := _glibc()) is not None:
            libc.malloc_trim(0)

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Look at the first steps, and keep freed memory from then on if there is enough."""
        self._steps += 1
        if self._steps == WATCHED_STEP - 1:
            self._resting = _bytes("VmRSS:")
            with suppress(OSError):
                RESET_PEAK.write_text("5", encoding="ascii")
        elif self._steps == WATCHED_STEP and self._may_keep:
            taken = _bytes("VmHWM:") - self._resting
            if 0 < MARGIN * taken <= self._spare():
                _set(KEPT)
                self.kept = True


def _bytes(field: str) -> int:
    """A field of this process's status, in bytes; 0 if it is missing."""
    with suppress(OSError, ValueError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _set(options: dict[int, int]) -> None:
    if (libc := _glibc()) is not None:
        for parameter, value in options.items():
            libc.mallopt(parameter, value)
