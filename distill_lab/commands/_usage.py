"""Time and memory that a block takes: seconds, host memory of this process and its children, and the GPU's memory.

    with Usage() as usage: train()
    print(usage)                       4 min, at most 3.1 GB of memory, 11.2 of 15.0 GB of the GPU

Memory is looked at every EVERY_S seconds: short peaks are missed. The GPU's is that of all programs (nvidia-smi).
"""

from __future__ import annotations

import shutil
import subprocess
import time
from threading import Event, Thread
from types import TracebackType

from distill_lab.formatting import duration

EVERY_S, GPU_EVERY_S = 0.5, 5.0
QUERY = ("nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")


class Usage:
    """What the block took, once it has ended."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.host_bytes = 0
        """Peak of this process and its children together."""
        self.gpu_bytes = self.gpu_total = 0
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="usage")
        self._began = 0.0

    def __enter__(self) -> Usage:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._began

    def __str__(self) -> str:
        gpu = f", {self.gpu_bytes / 1e9:.1f} of {self.gpu_total / 1e9:.1f} GB of the GPU" if self.gpu_total else ""
        return f"{duration(self.seconds)}, at most {self.host_bytes / 1e9:.1f} GB of memory{gpu}"

    def _watch(self) -> None:
        has_gpu, looked = shutil.which(QUERY[0]) is not None, 0.0
        while True:
            self.host_bytes = max(self.host_bytes, host_bytes())
            if has_gpu and time.monotonic() - looked >= GPU_EVERY_S:
                looked = time.monotonic()
                used, total = gpu_bytes()
                self.gpu_bytes, self.gpu_total = max(self.gpu_bytes, used), total
            if self._ended.wait(EVERY_S):
                return


def host_bytes() -> int:
    """Memory of this process and its children."""
    import psutil

    me = psutil.Process()
    found = me.memory_info().rss
    for each in me.children(recursive=True):
        try:
            found += each.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return found


def gpu_bytes() -> tuple[int, int]:
    """Used and total memory of the first GPU; zeros if its driver does not answer."""
    try:
        found = subprocess.run(QUERY, capture_output=True, text=True, timeout=5, check=True).stdout
        used, total = (int(part) << 20 for part in found.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0, 0
    return used, total
